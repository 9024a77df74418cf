"""A Brownian path against its definition, and against itself: other batches, other grids, another time of asking."""

import itertools
import math

import pytest
import torch

from explainode.dynamics.brownian import BrownianPath
from explainode.errors import UserError
from explainode.randomness import sample_keys

PINNED = [
    -0.05212176591157913,
    0.38946983218193054,
    0.48317140340805054,
    0.11503516137599945,
    -0.07942360639572144,
    0.33983588218688965,
    -0.34865516424179077,
    0.17884477972984314,
]  # float32, written out exactly


def keys(batch, seed=0):
    return sample_keys(torch.arange(batch), seed)


def grid(path, like, level=0):
    """(steps * 2^level, *like.shape): every increment."""
    return torch.stack([path.increment(n, like, level) for n in range(path.steps << level)])


# --- the definition ---


@pytest.mark.parametrize("level", [0, 1, 3])
def test_increments_are_normal_with_the_intervals_length_as_variance(level):
    path, like = BrownianPath(keys(64), 4, t0=1.0, t1=4.0), torch.empty(64, 500, dtype=torch.float64)
    h = 3 / (4 << level)
    w = grid(path, like, level).flatten(1) / math.sqrt(h)
    n = w.shape[1]
    # five standard errors of mean, variance, skewness and kurtosis of n independent normals
    assert (w.mean(1).abs() < 5 / math.sqrt(n)).all()
    assert ((w.square().mean(1) - 1).abs() < 5 * math.sqrt(2 / n)).all()
    assert ((w**3).mean(1).abs() < 5 * math.sqrt(15 / n)).all()
    assert ((w**4).mean(1) - 3).abs().max() < 5 * math.sqrt(96 / n) + 0.01  # the table of quantiles ends at 4.4


@pytest.mark.parametrize("level", [0, 2])
def test_increments_of_different_intervals_samples_and_elements_are_uncorrelated(level):
    path, like = BrownianPath(keys(64), 4), torch.empty(64, 500, dtype=torch.float64)
    w = grid(path, like, level)
    steps = w.shape[0]
    intervals = torch.corrcoef(w.flatten(1)) - torch.eye(steps)
    samples = torch.corrcoef(w.transpose(0, 1).flatten(1)) - torch.eye(64)
    elements = torch.corrcoef(w.movedim(2, 0).flatten(1)) - torch.eye(500)
    # six standard errors: the largest of 125,000 correlations lies near 4.6
    assert intervals.abs().max() < 6 / math.sqrt(64 * 500)
    assert samples.abs().max() < 6 / math.sqrt(steps * 500)
    assert elements.abs().max() < 6 / math.sqrt(steps * 64)


def test_squares_of_neighboring_increments_are_uncorrelated_too():
    """Children of one interval share its draw: their dependence must cancel in the second moment as well."""
    w = grid(BrownianPath(keys(64), 2), torch.empty(64, 2000, dtype=torch.float64), level=2).flatten(1).square()
    assert (torch.corrcoef(w) - torch.eye(8)).abs().max() < 6 / math.sqrt(w.shape[1])


# --- one path, many grids ---


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 1e-15), (torch.float32, 1e-6)])
def test_a_finer_grid_refines_the_same_path(dtype, rounding):
    path, like = BrownianPath(keys(3), 5, t1=2.0), torch.empty(3, 4, 2, dtype=dtype)
    grids = [grid(path, like, level) for level in range(5)]
    for coarse, fine in itertools.pairwise(grids):
        assert torch.allclose(fine.unflatten(0, (-1, 2)).sum(1), coarse, rtol=0, atol=4 * rounding)
    assert torch.allclose(grids[4].sum(0), grids[0].sum(0), rtol=0, atol=100 * rounding)


def test_another_interval_or_base_grid_is_another_path():
    like = torch.empty(64, 1000, dtype=torch.float64)
    settings = [(4, 0.0, 1.0), (8, 0.0, 1.0), (4, 0.0, 0.5), (4, 0.5, 1.0), (4, 0.0, 2.0)]
    drawn = torch.stack([BrownianPath(keys(64), *s).increment(0, like).flatten() for s in settings])
    assert (torch.corrcoef(drawn) - torch.eye(len(settings))).abs().max() < 5 / math.sqrt(64_000)


def test_minus_zero_is_zero():
    like = torch.empty(2, 3)
    assert torch.equal(
        BrownianPath(keys(2), 4, -0.0).increment(1, like), BrownianPath(keys(2), 4, 0.0).increment(1, like)
    )


# --- the same answer, whoever asks ---


@pytest.mark.parametrize("level", [0, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_samples_path_does_not_depend_on_its_batch(level, channels_last):
    key, x = keys(64), torch.empty(64, 3, 5, 2)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    whole = grid(BrownianPath(key, 3), x, level)
    for rows in (torch.tensor([9]), torch.arange(7), torch.randperm(64), torch.arange(1, 64, 2), torch.tensor([5, 5])):
        assert torch.equal(grid(BrownianPath(key[rows], 3), x[rows], level), whole[:, rows])


def test_the_order_of_questions_does_not_matter():
    path, like = BrownianPath(keys(2), 4), torch.empty(2, 3)
    forward = grid(path, like, 2)
    assert torch.equal(torch.stack([path.increment(n, like, 2) for n in reversed(range(16))]).flip(0), forward)


def test_global_generators_are_neither_read_nor_moved():
    path, like = BrownianPath(keys(2), 4), torch.empty(2, 3)
    state = torch.get_rng_state()
    first = grid(path, like, 1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(grid(path, like, 1), first)


def test_the_path_is_pinned():
    """Saved results name a seed; these bits are what it promises."""
    path = BrownianPath(keys(2, seed=7), 4)
    drawn = torch.stack([path.increment(3, torch.empty(2, 2)), path.increment(13, torch.empty(2, 2), level=2)])
    assert drawn.flatten().tolist() == PINNED


def test_dtype_and_memory_order_are_the_states():
    path = BrownianPath(keys(2), 4)
    full = torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        w = path.increment(5, full.to(dtype), level=1)
        assert w.dtype == dtype and w.stride() == full.stride()
        assert torch.equal(w, path.increment(5, full.to(torch.promote_types(dtype, torch.float32)), level=1).to(dtype))


# --- bad input ---


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((None, 4), r"noise without key.*noise_scope"),
        ((torch.zeros(3), 4), r"int64 tensor of shape \(B,\).*got torch.float32 of shape \(3,\)"),
        ((torch.zeros(3, 1, dtype=torch.int64), 4), r"got torch.int64 of shape \(3, 1\)"),
        ((7, 4), r"got int"),
        ((keys(2), 0), r"at least 1 base step, got 0"),
        ((keys(2), 4, 1.0, 1.0), r"t0=1 and t1=1"),
        ((keys(2), 4, 1.0, 0.0), r"forward from t0 to t1.*t0=1 and t1=0"),
        ((keys(2), 4, 0.0, math.inf), r"finite.*t1=inf"),
    ],
)
def test_bad_paths(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        BrownianPath(*arguments)
