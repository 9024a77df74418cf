"""Maps weighted by forwards, against loops over single images and channels, and against what they must agree with."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from explainode.errors import UserError
from explainode.explainers.base import count_passes, pass_limit
from explainode.explainers.baselines import make_baseline
from explainode.explainers.cam import GradCAM
from explainode.explainers.score_cam import GroupCAM, ScoreCAM, seen_through
from explainode.randomness import noise_scope


def scaled(mask: torch.Tensor) -> torch.Tensor:
    """(h, w) of layer resolution -> (12, 12) in [0, 1]; a constant one becomes 0."""
    mask = F.interpolate(mask[None, None], size=(12, 12), mode="bilinear", align_corners=False)[0, 0]
    return torch.zeros_like(mask) if mask.max() == mask.min() else (mask - mask.min()) / (mask.max() - mask.min())


def features(net: nn.Module, image: torch.Tensor) -> torch.Tensor:
    held = {}
    handle = net.body.register_forward_hook(lambda module, args, output: held.update(A=output))
    with torch.no_grad():
        net(image)
    handle.remove()
    return held["A"]


def ranking(maps: torch.Tensor) -> torch.Tensor:
    return maps.flatten(1).argsort(dim=1, stable=True)


def looped(net: nn.Module, image: torch.Tensor, target: int, weights: str) -> torch.Tensor:
    """Score-CAM of one image (1, C, H, W), one channel after the other."""
    A = features(net, image)[0]
    total, scores = torch.zeros(6, 6), []
    with torch.no_grad():
        for channel in A:
            logits = net(image * scaled(channel))[0]
            scores.append(logits[target] if weights == "softmax" else logits.softmax(0)[target])
        if weights == "softmax":
            scores = list(torch.stack(scores).softmax(0))
        for channel, score in zip(A, scores, strict=True):
            if weights == "softmax" or channel.max() > channel.min():
                total += score * channel
    return total


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("weights", ["probability", "softmax"])
def test_score_cam_is_a_loop_over_channels(weights, constant, net, x, target):
    if constant:  # batch norm and ReLU of nothing: one value everywhere
        net.body[0].weight.data[3], net.body[0].bias.data[3], net.body[1].running_mean[3] = 0, 0, -1
        assert features(net, x)[:, 3].min() == features(net, x)[:, 3].max() > 0
    maps = ScoreCAM(weights=weights, relu=False)(net, x, target)
    for i in range(4):
        torch.testing.assert_close(maps[i, 0], looped(net, x[i : i + 1], int(target[i]), weights), rtol=1e-5, atol=1e-6)
    assert torch.equal(ScoreCAM(weights=weights)(net, x, target), maps.relu())


def test_score_cam_with_softmax_is_pytorch_grad_cams(net, x, target, monkeypatch):
    """They upsample with aligned corners, which is switched off here.

    Version 1.5.7, measured: 1e-7 of the maximum (ResNet-18, 64 pixels: 4e-7); with their own upsampling 4e-3 (2e-3).
    """
    theirs = pytest.importorskip("pytorch_grad_cam", reason="pytorch-grad-cam is an optional package")
    monkeypatch.setattr(
        nn, "UpsamplingBilinear2d", lambda size: nn.Upsample(size=size, mode="bilinear", align_corners=False)
    )
    with theirs.ScoreCAM(net, [net.body]) as peer:
        peer(x, [lambda logits, k=int(k): logits[k] for k in target])
        A = peer.activations_and_grads.activations[0].numpy()
        targets = [lambda logits, k=int(k): logits[k] for k in target]
        expected = torch.as_tensor(peer.get_cam_image(x, net.body, targets, A, None, False)).relu()
    ours = ScoreCAM(layer="body", weights="softmax")(net, x, target)[:, 0]
    assert (ours - expected).abs().max() <= 1e-5 * expected.max()


def test_what_a_mask_hides_is_the_baseline(x):
    M = torch.zeros(4, 2, 3, 3)
    M[:, 0, 1, 1] = 5.0
    hidden, constant = seen_through(M, x, make_baseline("white", x))
    assert torch.equal(constant, torch.ones_like(x))
    assert torch.equal(hidden[..., 0, 0], torch.ones(4, 3))
    peak = scaled(M[0, 0])
    torch.testing.assert_close(hidden, 1 - peak + peak * x)


def test_group_cam_is_a_loop_over_groups(net, x, target):
    maps = GroupCAM(groups=4)(net, x, target)
    base = make_baseline("blur", x)
    for i in range(4):
        image, c = x[i : i + 1], int(target[i])
        A = features(net, image)[0]
        alpha = net.head.weight[c].detach() / A[0].numel()  # behind global average pooling
        expected = torch.zeros(6, 6)
        for channels in torch.arange(8).chunk(4):
            M = (alpha[channels, None, None] * A[channels]).sum(0).relu()
            share = scaled(M)
            with torch.no_grad():
                p = net(share * image + (1 - share) * base[i : i + 1]).softmax(1)[0, c]
                p_base = net(base[i : i + 1]).softmax(1)[0, c]
            expected += (p - p_base).clamp(min=0) * M
        torch.testing.assert_close(maps[i, 0], expected, rtol=1e-3, atol=1e-7)


def test_one_group_ranks_as_grad_cam(net, x, target):
    """Where the whole map raises the probability; elsewhere no group does, and the map is 0."""
    group, grad = GroupCAM(groups=1)(net, x, target), GradCAM()(net, x, target)
    raised = group.flatten(1).any(1)
    assert raised.any()
    assert torch.equal(ranking(group[raised]), ranking(grad[raised]))
    ratio = group[raised].amax((1, 2, 3)) / grad[raised].amax((1, 2, 3))
    torch.testing.assert_close(group[raised], ratio[:, None, None, None] * grad[raised])


@pytest.mark.parametrize("explainer", [ScoreCAM(), ScoreCAM(weights="softmax"), GroupCAM(groups=3)])
def test_a_doubled_batch_gives_every_map_twice(explainer, net, x, target):
    once = explainer(net, x, target)
    with noise_scope(torch.arange(4).repeat(2), active=False):
        twice = explainer(net, torch.cat([x, x]), torch.cat([target, target]))
    torch.testing.assert_close(twice, torch.cat([once, once]), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("groups", "made"), [(3, 3), (5, 5), (8, 8), (32, 8), (1, 1)])
def test_there_are_as_many_groups_as_asked_for_and_at_most_one_per_channel(groups, made, net, x, target):
    GroupCAM(layer="body", groups=groups)(net, x, target)  # what belongs to the network is looked up once
    with count_passes() as passes, pass_limit(6):
        GroupCAM(layer="body", groups=groups)(net, x, target)
    assert (passes.forwards, passes.backwards) == (4 * (1 + made + 1), 4)
    A = torch.rand(4, 8, 2, 2)
    masks = GroupCAM(groups=groups).masks(A, torch.ones_like(A))
    assert masks.shape == (4, made, 2, 2)
    torch.testing.assert_close(masks.sum(1), A.sum(1))  # no channel is lost


def test_the_relu_comes_after_the_sum_of_a_group():
    A = torch.tensor([[[[3.0, -1.0]], [[-2.0, 2.0]]]])
    assert GroupCAM(groups=1).masks(A, torch.ones_like(A)).tolist() == [[[[1.0, 1.0]]]]
    assert GroupCAM(groups=2).masks(A, torch.ones_like(A)).tolist() == [[[[3.0, 0.0]], [[0.0, 2.0]]]]


def test_a_percentile_keeps_the_strongest_positions():
    A = torch.arange(10.0).reshape(1, 1, 2, 5)
    M = GroupCAM(groups=1, percentile=70).masks(A, torch.ones_like(A))
    assert M.flatten().tolist() == [0, 0, 0, 0, 0, 0, 0, 7, 8, 9]  # the percentile is 6.3
    assert GroupCAM(groups=1, percentile=0).masks(A, torch.ones_like(A)).count_nonzero() == 9


def test_no_group_that_helps_gives_a_zero_map(net, x, target):
    nn.init.zeros_(net.head.weight)
    assert torch.equal(GroupCAM()(net, x, target), torch.zeros(4, 1, 6, 6))


def test_constant_masks_do_not_count_even_when_rounding_favors_them(x):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    nn.init.zeros_(net[0].weight), nn.init.ones_(net[0].bias), nn.init.constant_(net[3].weight, 1.0)
    maps = GroupCAM(groups=2)(net, x, 0)
    assert torch.equal(maps, torch.zeros(4, 1, 12, 12))


def test_score_cam_takes_one_forward_per_channel_and_one(net, x, target):
    ScoreCAM(layer="body")(net, x, target)  # what belongs to the network is looked up once
    seen = []
    net.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    with count_passes() as passes, pass_limit(7):
        ScoreCAM(layer="body")(net, x, target)
    assert (passes.forwards, passes.backwards) == (4 * 9, 0)
    assert sum(seen) == 4 * 9 and max(seen) <= 7


@pytest.mark.parametrize("explainer", [ScoreCAM(), GroupCAM(groups=2)])
def test_all_copies_carry_their_images_noise(explainer, noisy_net, x, target):
    """Under one noise path the masked copies differ by their masks alone: the same bits for the same path, others for another."""
    maps = []
    for draw in (0, 0, 1):
        with noise_scope(torch.arange(4), draw=draw):
            maps.append(explainer(noisy_net, x, target))
    assert torch.equal(maps[0], maps[1]) and not torch.equal(maps[0], maps[2])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ScoreCAM(weights="softmaks"), "probability or softmax, got 'softmaks'; the nearest is softmax"),
        (lambda: GroupCAM(groups=0), "groups must be at least 1, got 0"),
        (lambda: GroupCAM(percentile=100), r"percentile must lie in \[0, 100\)"),
    ],
)
def test_parameters_out_of_range_are_named(make, words):
    with pytest.raises(UserError, match=words):
        make()
