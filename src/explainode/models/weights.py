"""Weights from files: what may be in one, how its names map onto a network's, and what is said when they do not fit."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from explainode.errors import UserError, nearest
from explainode.files import inflates
from explainode.models.residual import torchvision_key

CONTAINERS = (
    "state_dict",
    "model",
    "model_ema",
    "ema",
)  # where training scripts (ours and Lightning's; torchvision's references; timm's averages) keep the weights
PREFIXES = ("module.", "_orig_mod.", "network.")  # of DataParallel, torch.compile and our Lightning modules
# torchvision's DenseNet files are older than its module names: `denselayer1.norm.1.weight` there is `denselayer1.norm1.weight`
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d\.)")


def initialize(network: nn.Module, weights: str | None, name: str | None = None) -> nn.Module:
    """The network, filled as the `weights` of a config say: None leaves it, a path loads that file, "torchvision" downloads.

    Args:
        weights: None, a path, or "torchvision" for what torchvision holds to be its best weights of model `name`;
            "torchvision:IMAGENET1K_V1" for others of its weights.

    Raises:
        UserError: see `load_weights`; if torchvision has no such weights, or they cannot be downloaded.
    """
    if weights is None:
        return network
    place, _, entry = str(weights).partition(":")
    if place == "torchvision":
        fit_state_dict(network, _download(name, entry), f"{weights} for {name}")
    else:
        load_weights(network, weights)
    return network


def _download(name: str | None, entry: str) -> Mapping[str, Tensor]:
    from torchvision.models import get_model_weights, list_models

    if name not in list_models():
        raise UserError("torchvision has no weights for this network; give the path of a file, or weights=null")
    offered = get_model_weights(name)
    known = [member.name for member in offered]
    if entry and entry not in known:
        raise UserError(f"torchvision has no weights {entry!r} for {name}; the nearest are {nearest(entry, known)}")
    try:
        return (offered[entry] if entry else offered["DEFAULT"]).get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network; a download whose hash differs
        raise UserError(
            f"torchvision's weights for {name} cannot be downloaded ({error}); give the path of a file instead"
        ) from error


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Fill `network` from a file written by `torch.save`: a state dict, or a checkpoint that holds one, in torchvision's names or ours.

    Only tensors are read (`weights_only=True`): a file cannot run code. Nothing is changed unless everything fits.

    Raises:
        UserError: if there is no such file, it is no checkpoint, is damaged, asks to run code, or holds another network's weights.
    """
    fit_state_dict(network, read_state_dict(path), str(path))


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by their names in it, without the container around them.

    Raises:
        UserError: if there is no such file, it is no checkpoint, is damaged or asks to run code.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, but weights are one file written by torch.save; name the file in it")
    if not path.is_file():
        raise UserError(f"there is no weights file {path}; give the path of a state dict or checkpoint")
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        raise UserError(f"the weights file {path} is empty; copy or download it again")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if start[:2] != b"PK" and start[:1] != b"\x80":  # the zip archives of today's torch.save, the pickles of before
        raise UserError(
            f"{path} is no PyTorch checkpoint (it begins with {start!r}); weights are a file written by torch.save"
        )
    try:
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        RuntimeError,
        EOFError,
        LookupError,
        ValueError,
        OSError,
        MemoryError,
        TypeError,
        AttributeError,
    ) as error:
        if isinstance(error, UserError):
            raise
        if isinstance(error, pickle.UnpicklingError) and "unsupported" in str(error).lower():
            raise UserError(
                f"{path} is a pickle that could run code, which is refused; save only the weights, torch.save(network.state_dict(), path)"
            ) from error
        raise UserError(f"the weights file {path} is damaged or cut short; copy or download it again") from error
    kept = content.get("distillation") if isinstance(content, Mapping) else None
    if isinstance(kept, Mapping) and kept.get("best"):
        content = kept["best"]  # the weights that a distillation has kept, which need not be those of its last step
    for name in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not state:
        raise UserError(
            f"{path} holds {_kind(content)}, but weights are a state dict: names and tensors, torch.save(network.state_dict(), path)"
        )
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(
            f"{path} needs the package safetensors, which is not installed; pip install safetensors"
        ) from error
    try:
        state: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"the weights file {path} is damaged or cut short ({error}); copy or download it again"
        ) from error
    if not state:
        raise UserError(f"{path} holds no tensors, but weights are names and tensors")
    return state


def _check_archive(path: Path) -> None:
    """Compare the bytes of a zip archive with their checksums: `torch.load` does not, and would give a flipped bit to the network."""
    if zipfile.is_zipfile(path):
        if (reason := inflates(path)) is not None:
            raise UserError(f"{path} is no file of torch.save: {reason}")
        with zipfile.ZipFile(path) as archive:
            if (member := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"the checksum of {member} differs")


def fit_state_dict(network: nn.Module, state: Mapping[str, Tensor], source: str = "the state dict") -> None:
    """Fill `network` from a state dict in torchvision's names or ours, with or without the prefixes of wrappers.

    Args:
        source: what an error message calls the weights.

    Raises:
        UserError: if a tensor is missing, left over, of another shape or kind, or holds NaN or infinite values; then the network is as it was.
    """
    own = network.state_dict()
    state = from_torchvision(network, _strip_prefixes(state, own))
    # BatchNorm's counters came late (PyTorch 0.4.1): older files lack them, and evaluation does not need them
    for name in own.keys() & state.keys():
        if (reason := _unfit(own[name], state[name])) is not None:
            raise UserError(f"{source} cannot be used: {name} {reason}")
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    misshaped = [k for k in own if k in state and own[k].shape != state[k].shape]
    if missing or unexpected or misshaped:
        raise UserError(_misfit(source, own, state, missing, unexpected, misshaped))
    network.load_state_dict(state)


def _unfit(own: Tensor, given: Tensor) -> str | None:
    """Why a tensor cannot stand in the place of another, whatever its shape; None where it can."""
    if given.layout != torch.strided or given.is_meta or given.is_quantized or given.is_nested:
        kind = "holds no values" if given.is_meta else "is sparse, quantized or nested"
        return f"{kind}; save plain tensors"
    if (own.is_floating_point(), own.is_complex()) != (given.is_floating_point(), given.is_complex()):
        return f"is of type {given.dtype}, and the network's of {own.dtype}; nothing converts one into the other without loss"
    if given.is_floating_point() and own.shape == given.shape:
        bad = int((~torch.isfinite(given)).sum())
        if bad and bool(torch.isfinite(own).all()):
            return f"holds {bad} values of {given.numel()} that are NaN or infinite; its training has diverged"
    return None


def to_torchvision(network: nn.Module) -> dict[str, Tensor]:
    """The network's state dict under torchvision's names: what torchvision's own model of that name loads."""
    return {torchvision_key(k): v for k, v in network.state_dict().items()}


def from_torchvision(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in torchvision's names under the network's own; names that are already the network's, or unknown, stay."""
    ours = {torchvision_key(k): k for k in network.state_dict()}
    renamed = {OLD_DENSENET.sub(r"\1\2", k): v for k, v in state.items()}
    return {ours.get(k, k): v for k, v in renamed.items()}


def _strip_prefixes(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the wrappers' prefixes; what lies outside a wrapped network (metrics, a second network) is left behind."""
    state, known = dict(state), {*own, *map(torchvision_key, own)}
    # a network may have a part called `network` itself: only names that it does not know can have a wrapper's prefix
    while not known & {OLD_DENSENET.sub(r"\1\2", k) for k in state} and (wrapper := _wrapper(state, known)) is not None:
        state = {k.removeprefix(wrapper): v for k, v in state.items() if k.startswith(wrapper)}
    return state


def _wrapper(state: Mapping[str, Tensor], known: set[str]) -> str | None:
    """The prefix under which the network's names stand: of a wrapper that we know, or of whatever its module was called.

    Raises:
        UserError: if several parts of the file hold a network of these names.
    """
    ours = next((prefix for prefix in PREFIXES if any(k.startswith(prefix) for k in state)), None)
    if ours is not None:
        return ours
    parts = dict.fromkeys(f"{k.partition('.')[0]}." for k in state if "." in k)
    fitting = {p: len(known & {k.removeprefix(p) for k in state if k.startswith(p)}) for p in parts}
    best = max(fitting.values(), default=0)
    if best == 0:  # two wrappers, one in the other
        deeper = [
            p for p in parts if any(k.startswith(p) and k.removeprefix(p).partition(".")[2] in known for k in state)
        ]
        return deeper[0] if len(deeper) == 1 else None
    leaders = [p for p, count in fitting.items() if count == best]
    if len(leaders) > 1:
        raise UserError(
            f"the weights hold several networks of these names, under {', '.join(p.rstrip('.') for p in leaders)}; save the one that is meant by itself"
        )
    return leaders[0]


def _misfit(
    source: str,
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    misshaped: list[str],
) -> str:
    """The sentence that says how the weights differ from what the network needs."""
    head = [k for k in own if not k.endswith("num_batches_tracked")][-2:]  # weight and bias of the last layer
    if not missing and not unexpected and misshaped == head:
        theirs, ours = len(state[head[1]]), len(own[head[1]])
        return f"{source} holds weights for {theirs} classes, but this network has {ours}; build it with num_classes={theirs}"
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {len(own)} tensors are missing (first {missing[0]!r})")
    if unexpected:
        parts.append(f"{len(unexpected)} are unknown to the network (first {unexpected[0]!r})")
    if misshaped:
        k = misshaped[0]
        parts.append(
            f"{len(misshaped)} have another shape (first {k!r}: {tuple(state[k].shape)}, needed {tuple(own[k].shape)})"
        )
    return f"{source} holds weights of another network: {', '.join(parts)}; choose the model that they were trained as"


def _kind(content: Any) -> str:
    return (
        "a dictionary without tensors"
        if isinstance(content, Mapping)
        else f"an object of type {type(content).__name__}"
    )
