"""Keyed noise: pinned bits, independence of everything but the key, and the moments of what it claims to draw."""

import hashlib
import math
import threading

import pytest
import torch

from explainode import randomness
from explainode.randomness import (
    chain,
    current_scope,
    input_keys,
    noise_draw,
    noise_rows,
    noise_scope,
    normal,
    normal_like,
    permutation,
    sample_keys,
    uniform,
    uniform_like,
)


def sha256(x):
    return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()


def keys(n, *parts):
    return sample_keys(torch.arange(n), *parts)


# --- the bits ---


def test_splitmix64_gives_the_published_sequence():
    """Seed 1234567 of Vigna's splitmix64.c: the reference values that Rosetta Code and other implementations print."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    state = torch.tensor([1234567]) + randomness._steps(5, torch.device("cpu"))
    words = [word & ((1 << 64) - 1) for word in randomness._mix_(state).tolist()]
    assert words == published
    assert [randomness._mix_int((1234567 + i * randomness.GOLDEN) & ((1 << 64) - 1)) for i in range(1, 6)] == published


def test_bits_are_pinned():
    """The same on every device, torch version and platform: integers, and a gather from a table of float32 quantiles."""
    assert (
        sha256(normal(keys(5, 1, "stream", 2), 1001))
        == "44699d2903e68e89d8dd5e60a6d78372d6460fa6aad1869bbf1b353a3ebbd452"
    )
    assert (
        sha256(uniform(keys(5, 1, "stream", 2), 1001))
        == "ffc22a1ca7fa7d9708f9a558dc6533cfd1361ea7851823fc4e81f91fe5fc345e"
    )
    assert permutation(10, 7, 3).tolist() == [8, 1, 9, 0, 3, 7, 4, 5, 2, 6]


def test_the_table_is_the_normal_quantile_function():
    table = randomness._normal_table(torch.device("cpu")).double()
    p = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    assert torch.allclose(
        torch.special.ndtri(p), table, rtol=2e-5, atol=1e-7
    )  # the rescaling to unit variance moves values by 1.5e-5
    assert table.square().mean().item() == pytest.approx(1.0, abs=1e-7)
    assert torch.equal(table, -table.flip(0))


@pytest.mark.parametrize("draw", [normal, uniform])
@pytest.mark.parametrize("numel", [1, 3, 4, 1000, 70_001])
def test_a_sample_is_the_same_in_any_batch_and_order(draw, numel):
    all_keys = keys(64, 5, 1)
    whole = draw(all_keys, numel)
    assert torch.equal(draw(all_keys[:7], numel), whole[:7])
    assert torch.equal(draw(all_keys[13:14], numel), whole[13:14])
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(all_keys[order], numel), whole[order])


def test_a_shorter_draw_is_a_prefix():
    assert torch.equal(normal(keys(3, 1), 10), normal(keys(3, 1), 999)[:, :10])


def test_an_empty_batch_and_an_empty_sample():
    assert normal(keys(0, 1), 12).shape == (0, 12)
    assert normal(keys(3, 1), 0).shape == (3, 0)
    assert normal_like(torch.empty(0, 3, 4, 4), keys(0, 1)).shape == (0, 3, 4, 4)
    assert uniform_like(torch.empty(0, 3, 4, 4), keys(0, 1)).shape == (0, 3, 4, 4)


def test_the_default_dtype_does_not_matter():
    expected = normal(keys(3, 1), 10)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(normal(keys(3, 1), 10), expected)
        assert uniform(keys(3, 1), 10).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_table_built_in_inference_mode_serves_autograd_later():
    randomness._normal_tables.clear()
    with torch.inference_mode():
        normal(keys(2, 1), 8)
    x = torch.ones(2, 8, requires_grad=True)
    (x * normal_like(x, keys(2, 1))).sum().backward()
    assert torch.equal(x.grad, normal(keys(2, 1), 8))


def test_no_generator_is_touched():
    before = torch.get_rng_state()
    normal(keys(3, 1), 100), uniform(keys(3, 1), 100), permutation(100, 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("draw", [normal, uniform])
def test_a_gpu_draws_the_same_bits(draw):
    assert torch.equal(draw(keys(64, 5, 1).cuda(), 70_001).cpu(), draw(keys(64, 5, 1), 70_001))


# --- the moments; tolerances are five standard errors of the estimate for n independent draws ---


def test_normal_moments():
    z = normal(keys(64, 3, "moments"), 16_384).double().flatten()
    n = z.numel()
    assert z.mean().abs() < 5 / math.sqrt(n)
    assert (z.square().mean() - 1).abs() < 5 * math.sqrt(2 / n)
    assert z.pow(3).mean().abs() < 5 * math.sqrt(15 / n)
    assert (z.pow(4).mean() - 3).abs() < 5 * math.sqrt(96 / n)
    assert 4 < z.abs().max() < 4.5  # the outermost quantile of the table is at 4.33


def test_normals_are_uncorrelated():
    """Between samples, neighbors in a row (which may share a hash), streams, blocks, steps and draws."""
    n = 200_000
    limit = 5 / math.sqrt(n)
    base = normal(keys(2, 3, 0, 0, 0), n).double()
    others = [
        normal(keys(2, *parts), n).double()[0] for parts in ((4, 0, 0, 0), (3, 1, 0, 0), (3, 0, 1, 0), (3, 0, 0, 1))
    ]
    assert (base[0] * base[1]).mean().abs() < limit
    for lag in range(1, 9):
        assert (base[0, lag:] * base[0, :-lag]).mean().abs() < limit
        assert (base[0, lag:].square() * base[0, :-lag].square()).mean().sub(1).abs() < 5 * math.sqrt(8 / n)
    for other in others:
        assert (base[0] * other).mean().abs() < limit


def test_uniform_moments():
    u = uniform(keys(64, 3, "moments"), 16_384).double().flatten()
    n = u.numel()
    assert u.min() >= 0 and u.max() < 1
    assert (u.mean() - 1 / 2).abs() < 5 * math.sqrt(1 / 12 / n)
    assert (u.square().mean() - 1 / 3).abs() < 5 * math.sqrt(4 / 45 / n)
    counts = torch.histc(u, bins=64, min=0, max=1)
    assert (counts - n / 64).square().sum() / (n / 64) < 63 + 5 * math.sqrt(
        2 * 63
    )  # chi-squared, 63 degrees of freedom


def test_permutation_is_one_and_keyed():
    order = permutation(1000, 7, 3)
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert torch.equal(order, permutation(1000, 7, 3))
    assert not torch.equal(order, permutation(1000, 7, 4))
    assert abs(torch.corrcoef(torch.stack([order.double(), torch.arange(1000.0).double()]))[0, 1]) < 5 / math.sqrt(1000)


# --- keys ---


def test_key_parts_all_matter_and_keep_their_order():
    assert (
        len({chain(*parts) for parts in ((1, 2), (2, 1), (1, 2, 0), (12,), ("1", 2), (-1, 2), ("a", "b"), ("ab",), ())})
        == 9
    )
    assert torch.equal(keys(4, 1, 2), sample_keys(torch.arange(4, dtype=torch.int32), 1, 2))
    assert len(set(keys(100_000, 1, 2).tolist())) == 100_000


# --- memory order ---


def test_channels_last_is_drawn_in_memory_order():
    x = torch.empty(3, 5, 4, 6, memory_format=torch.channels_last)
    noise = normal_like(x, keys(3, 1))
    assert noise.shape == x.shape and noise.stride() == x.stride()
    assert torch.equal(noise.permute(0, 2, 3, 1).flatten(1), normal(keys(3, 1), 5 * 4 * 6))
    contiguous = normal_like(x.contiguous(), keys(3, 1))
    assert torch.equal(contiguous.flatten(1), normal(keys(3, 1), 5 * 4 * 6))


@pytest.mark.parametrize("shape", [(4, 7), (4, 3, 5), (4, 2, 3, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_shape_and_dtype(shape, dtype):
    x = torch.empty(shape, dtype=dtype)
    for draw_like, draw in ((normal_like, normal), (uniform_like, uniform)):
        values = draw_like(x, keys(4, 1))
        assert values.shape == shape and values.dtype == dtype
        assert torch.equal(values.flatten(1), draw(keys(4, 1), x[0].numel()).to(dtype))


# --- scopes ---


def test_scopes_nest_and_end_also_on_error():
    assert current_scope() is None
    with noise_scope(torch.arange(3), seed=1) as outer:
        assert current_scope() is outer and outer.active
        with pytest.raises(KeyError), noise_scope(torch.arange(2), seed=2, active=False):
            assert current_scope().seed == 2 and not current_scope().active
            raise KeyError
        assert current_scope() is outer
    assert current_scope() is None


def test_scope_keys_are_chained_from_seed_parts_step_and_draw():
    ids = torch.tensor([8, 3])
    with noise_scope(ids, seed=5, draw=2) as scope:
        assert torch.equal(scope.keys(2, torch.device("cpu"), 4), sample_keys(ids, 5, 4, 0, 2))


def test_a_batch_of_another_size_is_refused():
    with noise_scope(torch.arange(3)) as scope:
        with pytest.raises(RuntimeError, match=r"3 samples, but the batch has 6 rows.*noise_rows"):
            scope.keys(6, torch.device("cpu"))
        with pytest.raises(RuntimeError, match=r"3 samples, but 6 rows ask for draws of stream 'paths'"):
            input_keys(torch.empty(6, 2), "paths", 0)


def test_noise_rows_carry_their_samples_noise():
    ids = torch.tensor([8, 3])
    with noise_scope(ids, seed=5), noise_rows(torch.tensor([0, 1, 0, 1, 1])) as scope:
        assert torch.equal(
            scope.keys(5, torch.device("cpu"), 4), sample_keys(torch.tensor([8, 3, 8, 3, 3]), 5, 4, 0, 0)
        )
        with noise_rows(torch.tensor([4, 0])) as inner:  # rows of the enclosing batch, not of the outermost
            assert inner.sample_ids.tolist() == [3, 8]
    with noise_rows(torch.tensor([0])) as scope:
        assert scope is None


def test_noise_draw_changes_the_draw_alone():
    with noise_scope(torch.arange(2), seed=5, active=False) as outer, noise_draw(3) as inner:
        assert (inner.seed, inner.draw, inner.active) == (5, 3, False) and inner.sample_ids is outer.sample_ids
    with noise_draw(3) as scope:
        assert scope is None


def test_input_keys_do_not_need_a_scope_or_active_noise():
    x = torch.empty(4, 2)
    alone = input_keys(x, "paths", 1)
    with noise_scope(torch.arange(4), active=False):
        assert torch.equal(input_keys(x, "paths", 1), alone)
        assert not torch.equal(input_keys(x, "paths", 2), alone) and not torch.equal(input_keys(x, "other", 1), alone)
    with noise_scope(torch.tensor([3, 2, 1, 0])):
        assert torch.equal(input_keys(x, "paths", 1), alone.flip(0))


def test_a_scope_belongs_to_its_thread():
    seen = []
    with noise_scope(torch.arange(2)):
        thread = threading.Thread(target=lambda: seen.append(current_scope()))
        thread.start()
        thread.join()
    assert seen == [None]
