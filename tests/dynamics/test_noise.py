"""Noise against its equations: when it speaks, from which key, how large, and with which gradient."""

import copy

import pytest
import torch
from torch import nn

from explainode.dynamics.noise import Noise, mean_and_std, number_noise_blocks
from explainode.errors import UserError
from explainode.randomness import noise_draw, noise_rows, noise_scope, normal_like, sample_keys


def numbered(**settings):
    noise = Noise(**settings)
    noise.block = 4
    return noise


def state(batch=6, channels_last=False, dtype=torch.float32):
    x = 3 + 2 * torch.randn(batch, 5, 4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    return x.to(memory_format=torch.channels_last) if channels_last else x


def draw(noise, x, seed=1, **scope):
    with noise_scope(torch.arange(len(x)), seed=seed, **scope):
        return noise(x, x) if noise.kind == "dropout" else noise(x)


ALL_KINDS = [
    {},
    {"normalize": "batch"},
    {"normalize": False},
    *({"kind": kind} for kind in ("multiplicative", "dropout", "jump")),
]


# --- the equations ---


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_gaussian_equations(channels_last):
    x = state(channels_last=channels_last)
    eps = normal_like(x, sample_keys(torch.arange(6), 1, 4, 0, 0))  # seed, block, step, draw
    std = x.contiguous().flatten(1).std(1, unbiased=False).view(-1, 1, 1, 1)
    assert torch.allclose(draw(numbered(magnitude=0.5), x), 0.5 * std * eps, rtol=1e-5)  # float32 sums in another order
    assert torch.equal(draw(numbered(magnitude=0.5, normalize=False), x), 0.5 * eps)
    assert torch.equal(draw(numbered(magnitude=0.5, kind="multiplicative"), x), 0.5 * x * eps)


def test_normalized_noise_has_the_promised_size_in_every_sample():
    x = torch.randn(3, 20_000) * torch.tensor([[0.01], [1.0], [100.0]]) + 7
    ratio = draw(numbered(magnitude=0.25), x).std(1) / x.std(1)
    assert torch.allclose(
        ratio, torch.tensor(0.25), rtol=5 / (2 * 20_000) ** 0.5
    )  # five standard errors of a standard deviation


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_mean_and_std(offset):
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64) + offset
    mean, std = mean_and_std(x.float())
    rows = x.float().double().flatten(1)
    assert torch.allclose(mean.flatten().double(), rows.mean(1), rtol=1e-6)
    # a float32 mean of 1000 is off by up to 6e-5, which adds its square to the variance
    assert torch.allclose(std.flatten().double(), rows.std(1, unbiased=False), rtol=1e-5)


def test_dropout_noise_is_dropout_of_the_change():
    x, f = torch.zeros(64, 5000), 1 + torch.rand(64, 5000)
    noise = numbered(magnitude=0.3, kind="dropout")
    with noise_scope(torch.arange(64), seed=1):
        dropped = (f + noise(x, f)) / f
    kept = dropped > 0.5
    assert torch.allclose(dropped[kept], torch.tensor(1 / 0.7)) and torch.allclose(
        dropped[~kept], torch.tensor(0.0), atol=1e-6
    )
    assert kept.float().mean().item() == pytest.approx(
        0.7, abs=5 * (0.3 * 0.7 / kept.numel()) ** 0.5
    )  # five standard errors
    with noise_scope(torch.arange(64)), pytest.raises(RuntimeError, match="change"):
        noise(x)


def test_jumps_are_rare_fair_and_in_proportion_to_the_state():
    x = 1 + torch.rand(64, 5000)
    jumps = draw(numbered(magnitude=0.5, kind="jump", rate=0.2), x) / x
    assert set(jumps.unique().tolist()) == {-0.5, 0.0, 0.5}
    for sign in (-0.5, 0.5):
        assert (jumps == sign).float().mean().item() == pytest.approx(
            0.1, abs=5 * (0.1 * 0.9 / x.numel()) ** 0.5
        )  # five standard errors
    assert torch.count_nonzero(draw(numbered(kind="jump", rate=0.0), x)) == 0
    assert torch.count_nonzero(draw(numbered(kind="jump", rate=1.0), x)) == x.numel()


@pytest.mark.parametrize("channels_last", [False, True])
def test_noise_normalized_by_the_batch_depends_on_batch_mates(channels_last):
    x = state(channels_last=channels_last) * torch.arange(1, 7).view(-1, 1, 1, 1)
    eps = normal_like(x, sample_keys(torch.arange(6), 1, 4, 0, 0))
    noise = numbered(magnitude=0.5, normalize="batch")
    assert torch.allclose(draw(noise, x), 0.5 * x.std(unbiased=False) * eps, rtol=1e-5)
    assert not torch.allclose(draw(noise, x)[:3], draw(noise, x[:3]), rtol=1e-2)
    alone = numbered(magnitude=0.5)
    assert torch.equal(draw(alone, x)[:3], draw(alone, x[:3]))


def test_noise_keeps_dtype_and_memory_order():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for settings in ALL_KINDS:
            x = state(channels_last=True, dtype=dtype).requires_grad_()
            noise = draw(numbered(**settings), x)
            assert noise.dtype == dtype and noise.stride() == x.stride()
            if noise.requires_grad:
                assert torch.autograd.grad(noise.sum(), x)[0].dtype == dtype


# --- the gradient ---


@pytest.mark.parametrize("settings", [settings for settings in ALL_KINDS if settings.get("normalize", True)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradient_and_second_gradient_are_exact(settings, channels_last):
    x = state(2, channels_last, torch.float64)[:, :2, :3, :3].requires_grad_()
    noise = numbered(magnitude=0.5, **settings)
    assert torch.autograd.gradcheck(lambda x: draw(noise, x), x)
    assert torch.autograd.gradgradcheck(lambda x: draw(noise, x), x)


def test_gradient_equals_autograd_through_the_standard_deviation():
    x = state(dtype=torch.float64).requires_grad_()
    eps = normal_like(x, sample_keys(torch.arange(6), 1, 4, 0, 0))
    weight = torch.randn_like(x)
    (expected,) = torch.autograd.grad(
        (0.5 * x.flatten(1).std(1, unbiased=False).view(-1, 1, 1, 1) * eps * weight).sum(), x
    )
    (ours,) = torch.autograd.grad((draw(numbered(magnitude=0.5), x) * weight).sum(), x)
    assert torch.allclose(ours, expected, rtol=1e-12, atol=1e-14)


def test_a_constant_state_gets_no_noise_and_no_nan():
    x = torch.full((2, 3, 4, 4), 1.5, requires_grad=True)
    noise = draw(numbered(magnitude=0.5), x)
    assert torch.count_nonzero(noise) == 0
    assert torch.count_nonzero(torch.autograd.grad(noise.sum(), x)[0]) == 0


def test_the_state_is_not_written_to():
    x = state()
    before = x.clone()
    draw(numbered(), x)
    assert torch.equal(x, before)


# --- when it speaks ---


@pytest.mark.parametrize("training", [True, False])
def test_a_scope_decides_when_there_is_one(training):
    noise = numbered().train(training)
    assert draw(noise, state()) is not None
    assert draw(noise, state(), active=False) is None


@pytest.mark.parametrize("settings", ALL_KINDS, ids=str)
def test_without_a_scope_train_mode_decides_and_torch_draws(settings):
    noise, x = Noise(**settings), state()  # needs no number here
    assert noise.eval()(x, x) is None
    noise.train()
    torch.manual_seed(0)
    first = noise(x, x)
    assert not torch.equal(noise(x, x), first)
    torch.manual_seed(0)
    assert torch.equal(noise(x, x), first)


@pytest.mark.parametrize("channels_last", [False, True])
def test_torchs_generator_is_read_in_memory_order(channels_last):
    x = state(channels_last=channels_last)
    torch.manual_seed(0)
    noise = Noise(magnitude=1.0, normalize=False)(x)
    torch.manual_seed(0)
    in_order = torch.randn(x.numel())
    stored = noise.permute(0, 2, 3, 1) if channels_last else noise
    assert noise.stride() == x.stride() and torch.equal(stored.flatten(), in_order)


def test_magnitude_0_never_speaks():
    noise = numbered(magnitude=0.0)
    assert noise.train()(state()) is None and draw(noise, state()) is None


# --- keys ---


@pytest.mark.parametrize(
    "settings", [settings for settings in ALL_KINDS if settings.get("normalize") != "batch"], ids=str
)
def test_noise_is_the_same_whatever_the_batch(settings):
    noise, x = numbered(**settings), state(64)
    whole = draw(noise, x)
    for rows in (torch.arange(1), torch.arange(7), torch.randperm(64), torch.tensor([5, 5, 9])):
        with noise_scope(torch.arange(64), seed=1), noise_rows(rows):
            drawn = noise(x[rows], x[rows])
            # the standard deviation of one row may be summed in another order than that of many
            assert (
                torch.allclose(drawn, whole[rows], rtol=1e-6, atol=0)
                if settings == {}
                else torch.equal(drawn, whole[rows])
            )


def test_seed_draw_block_and_sample_change_it():
    noise, other, x = numbered(), numbered(), state()
    other.block = 5
    with noise_scope(torch.arange(6), seed=1), noise_draw(1):
        next_draw = noise(x)
    drawn = [draw(noise, x), draw(noise, x, seed=2), draw(other, x), next_draw, draw(noise, x).roll(1, 0)]
    for i, a in enumerate(drawn):
        assert all(not torch.equal(a, b) for b in drawn[:i])


def test_an_unnumbered_block_is_refused_in_a_scope():
    with pytest.raises(RuntimeError, match="number_noise_blocks"):
        draw(Noise(), state())


def test_blocks_are_numbered_in_module_order():
    network = nn.Sequential(Noise(), nn.Sequential(nn.ReLU(), Noise()), Noise())
    assert number_noise_blocks(network) == 3
    assert [m.block for m in network.modules() if isinstance(m, Noise)] == [0, 1, 2]
    assert [m.block for m in copy.deepcopy(network).modules() if isinstance(m, Noise)] == [0, 1, 2]
    assert number_noise_blocks(nn.ReLU()) == 0
    assert list(network.state_dict()) == []


# --- bad input ---


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"kind": "additiv"},
            r"one of additive, multiplicative, dropout, jump, got 'additiv'; the nearest is additive",
        ),
        ({"where": "inside"}, r"before or after the activation, got where='inside'"),
        ({"kind": "jmp"}, r"nearest is jump"),
        ({"normalize": "sample"}, r"each sample \(true\).*normalize='sample'"),
        ({"kind": "dropout", "magnitude": 1.0}, r"probability of dropping and must be below 1, got 1.0"),
        ({"kind": "jump", "rate": 1.5}, r"rate of jumps .* \[0, 1\], got 1.5"),
        ({"magnitude": -0.1}, r"at least 0, got -0.1"),
        ({"magnitude": float("nan")}, r"finite number of at least 0, got nan"),
    ],
)
def test_bad_settings(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        Noise(**settings)
