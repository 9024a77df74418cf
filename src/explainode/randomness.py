"""Stateless noise: a tensor drawn from a key, the same for any batch size, order, rank, chunk or recompute.

A key is a 64-bit integer per sample, chained from (seed, stream, block, step, draw) and the sample's id; value `i` of the sample is
`mix(key + i * GOLDEN)`, the splitmix64 generator addressed by position. Normals come from a table of 65,536 quantiles (four 16-bit
indices per hash), so that only integers and a gather are used: the same bits on every device.

The noise scope is a context variable: blocks and explainers find seed, draw and sample ids there, so `net(x)` keeps its plain signature.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from hashlib import blake2b

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: the step of splitmix64 (Steele et al. 2014)
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = (1 << 64) - 1
_BLOCK = (
    1 << 16
)  # hashes per pass on a CPU: the fastest of 2^13..2^17, large enough to amortize the calls, small enough for the cache


def _signed(word: int) -> int:
    """The int64 with the same bits as the unsigned 64-bit `word`."""
    return word - (1 << 64) if word >> 63 else word


def _mix_int(z: int) -> int:
    z = ((z ^ (z >> 30)) * _MIX_1) & _WORD
    z = ((z ^ (z >> 27)) * _MIX_2) & _WORD
    return z ^ (z >> 31)


def _constant(word: int) -> Tensor:
    """An int64 scalar as a tensor: torch takes microseconds to wrap a Python number, again at each of the eleven operations of a hash."""
    return torch.tensor(_signed(word), dtype=torch.int64, device="cpu")


# (shift, the bits that a logical shift leaves, factor)
_ROUNDS = [
    (_constant(shift), _constant((1 << (64 - shift)) - 1), None if factor is None else _constant(factor))
    for shift, factor in ((30, _MIX_1), (27, _MIX_2), (31, None))
]


def _mix_(z: Tensor, shifted: Tensor | None = None) -> Tensor:
    """splitmix64's finalizer, in place on int64 (shifts are masked: int64 shifts carry the sign); `shifted` is scratch space like z."""
    shifted = torch.empty_like(z) if shifted is None else shifted
    for shift, kept, factor in _ROUNDS:
        torch.bitwise_right_shift(z, shift, out=shifted)
        shifted.bitwise_and_(kept)
        z.bitwise_xor_(shifted)
        if factor is not None:
            z.mul_(factor)
    return z


def _word(part: int | str) -> int:
    """A key part as an unsigned 64-bit word; names are hashed, so a stream or block may be called by its name."""
    if isinstance(part, str):
        return int.from_bytes(blake2b(part.encode(), digest_size=8).digest(), "little")
    return part & _WORD


def chain(*parts: int | str) -> int:
    """One unsigned 64-bit key from any number of integers and names; order matters."""
    key = 0
    for part in parts:
        key = _mix_int((key + GOLDEN + _mix_int(_word(part))) & _WORD)
    return key


def sample_keys(sample_ids: Tensor, *parts: int | str) -> Tensor:
    """(B,) int64 keys of the samples under the chained `parts`."""
    z = sample_ids.to(torch.int64) * _signed(GOLDEN)
    return _mix_(z.add_(_signed(chain(*parts))))


def fold_in(keys: Tensor, *parts: int | str) -> Tensor:
    """(B,) int64 keys chained from `keys` (B,) and further `parts`: the keys of a step, a level, a layer below them."""
    return sample_keys(keys, *parts)


def _steps(count: int, device: torch.device) -> Tensor:
    """(count,) int64: how far positions 0..count-1 lie from a key in splitmix64's sequence."""
    return torch.arange(1, count + 1, device=device, dtype=torch.int64).mul_(_signed(GOLDEN))


_normal_tables: dict[
    torch.device, Tensor
] = {}  # a dictionary: torch.compile would trace through an lru_cache, and build the table anew


def _normal_table(device: torch.device) -> Tensor:
    """(65536,) float32 quantiles of the normal at (i + 1/2) / 65536, scaled to unit variance."""
    if device not in _normal_tables:
        size = 1 << 16
        p = (torch.arange(size, dtype=torch.float64, device="cpu") + 0.5) / size
        quantiles = math.sqrt(2.0) * torch.erfinv(2.0 * p - 1.0)
        _normal_tables[device] = (quantiles / quantiles.square().mean().sqrt()).to(torch.float32).to(device)
    return _normal_tables[device]


def _hashes(keys: Tensor, width: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows b of a (B, width) int64 tensor of hashes, row b from `keys[b]` alone, some at a time in one buffer that may be overwritten."""
    batch = keys.shape[0]
    rows = max(1, min(batch, (_BLOCK if keys.device.type == "cpu" else 64 * _BLOCK) // max(width, 1)))
    steps = _steps(width, keys.device)
    words = torch.empty(rows, width, device=keys.device, dtype=torch.int64)
    scratch = torch.empty_like(words)
    for top in range(0, batch, rows):
        part = slice(0, min(rows, batch - top))
        torch.add(keys[top : top + rows, None], steps, out=words[part])
        yield slice(top, top + rows), _mix_(words[part], scratch[part])


def normal(keys: Tensor, numel: int) -> Tensor:
    """(B, numel) float32 standard normals, row b drawn from `keys[b]` alone."""
    table = _normal_table(keys.device)
    width = -(-numel // 4)  # one hash serves four values
    out = torch.empty(keys.shape[0], width * 4, device=keys.device, dtype=torch.float32)
    for rows, words in _hashes(keys, width):
        index = words.view(torch.uint16).to(torch.int32)
        torch.index_select(table, 0, index.view(-1), out=out[rows].view(-1))
    return out[:, :numel]


def uniform(keys: Tensor, numel: int) -> Tensor:
    """(B, numel) float32 in [0, 1), row b drawn from `keys[b]` alone (24 random bits each)."""
    out = torch.empty(keys.shape[0], numel, device=keys.device, dtype=torch.float32)
    for rows, words in _hashes(keys, numel):
        out[rows] = words.bitwise_right_shift_(40).bitwise_and_((1 << 24) - 1)
    return out.mul_(2.0**-24)


def permutation(n: int, *parts: int | str) -> Tensor:
    """(n,) int64: the keyed order of 0..n-1, the same on every rank."""
    return torch.argsort(sample_keys(torch.arange(n), "permutation", *parts), stable=True)


def _like(x: Tensor, values: Tensor) -> Tensor:
    """`values` (B, numel) laid out in the memory order of x (B, *S): channels_last stays channels_last."""
    if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        b, c, h, w = x.shape
        return values.reshape(b, h, w, c).permute(0, 3, 1, 2)
    return values.reshape(x.shape)


def normal_like(x: Tensor, keys: Tensor) -> Tensor:
    """Standard normals of x's shape (B, *S), dtype and memory order, one key per row."""
    return _like(x, normal(keys, x[0].numel() if len(x) else 0)).to(x.dtype)


def uniform_like(x: Tensor, keys: Tensor) -> Tensor:
    """Uniforms in [0, 1) of x's shape (B, *S), dtype and memory order, one key per row."""
    return _like(x, uniform(keys, x[0].numel() if len(x) else 0)).to(x.dtype)


@dataclass(frozen=True)
class NoiseScope:
    """Who is being computed: which samples, under which seed and draw, and whether noise blocks speak.

    Attributes:
        sample_ids: (B,) int64; row b of every batch inside the scope belongs to this sample.
        seed, draw: key parts; another draw is another noise path of the same sample.
        active: noise blocks inject noise (in train and eval mode alike) or stay silent.
        step: solver step, for blocks that are called several times.
    """

    sample_ids: Tensor
    seed: int = 0
    draw: int = 0
    active: bool = True
    step: int = 0

    def keys(self, batch: int, device: torch.device, *parts: int | str) -> Tensor:
        """(B,) int64 keys for a batch of this scope under further key `parts`.

        Raises:
            RuntimeError: if the batch has another number of rows than the scope (expanded batches name theirs with `noise_rows`).
        """
        if batch != len(self.sample_ids):
            raise RuntimeError(
                f"the noise scope holds {len(self.sample_ids)} samples, but the batch has {batch} rows; wrap the call in noise_rows(rows)"
            )
        return sample_keys(self.sample_ids.to(device), self.seed, *parts, self.step, self.draw)


_scope: ContextVar[NoiseScope | None] = ContextVar("explainode_noise_scope", default=None)


def current_scope() -> NoiseScope | None:
    """The innermost scope, or None outside of any."""
    return _scope.get()


@contextmanager
def _set(scope: NoiseScope | None) -> Iterator[NoiseScope | None]:
    token = _scope.set(scope)
    try:
        yield scope
    finally:
        _scope.reset(token)


def noise_scope(sample_ids: Tensor, seed: int = 0, draw: int = 0, active: bool = True):
    """Context: batches inside belong to `sample_ids` (B,) and draw from (seed, sample id, block, step, draw)."""
    return _set(NoiseScope(sample_ids, seed, draw, active))


def noise_rows(rows: Tensor):
    """Context: row i of a batch inside carries the noise of row `rows[i]` (R,) of the enclosing scope; nothing to do outside a scope."""
    scope = _scope.get()
    if scope is not None:
        scope = replace(scope, sample_ids=scope.sample_ids[rows.to(scope.sample_ids.device)])
    return _set(scope)


def noise_draw(draw: int):
    """Context: the enclosing scope with another draw (a fresh noise path for the same samples)."""
    scope = _scope.get()
    return _set(None if scope is None else replace(scope, draw=draw))


def input_keys(x: Tensor, stream: str, draw: int) -> Tensor:
    """(B,) keys for draws made *about* the inputs x (perturbed copies, random maps), whether noise blocks are active or not.

    Outside a scope the rows count as samples 0..B-1 of seed 0, so the same call gives the same result.
    """
    scope = _scope.get()
    if scope is None:
        return sample_keys(torch.arange(len(x), device=x.device), 0, stream, draw, 0)
    if len(x) != len(scope.sample_ids):
        raise RuntimeError(
            f"the noise scope holds {len(scope.sample_ids)} samples, but {len(x)} rows ask for draws of stream {stream!r}"
        )
    return sample_keys(scope.sample_ids.to(x.device), scope.seed, stream, draw, scope.draw)
