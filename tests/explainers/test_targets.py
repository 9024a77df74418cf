from __future__ import annotations

import pytest
import torch
from torch import nn

from explainode.errors import UserError
from explainode.explainers.base import resolve_target
from explainode.explainers.gradient import Saliency
from explainode.explainers.targets import check_logits, select_score

LOGITS = torch.tensor([[1.0, 3.0, 2.0], [5.0, 4.0, 6.0]])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (None, [1, 2]),
        (2, [2, 2]),
        ([0, 2], [0, 2]),
        (torch.tensor([2, 1], dtype=torch.int32), [2, 1]),
        (lambda logits: logits.argsort(1)[:, -2], [2, 0]),  # the runner-up
    ],
)
def test_every_form_becomes_one_class_per_row(target, expected):
    resolved = resolve_target(target, LOGITS)
    assert resolved.dtype == torch.int64 and resolved.tolist() == expected


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (5000, r"target 5000 is not a class of this model; choose one of 0\.\.2"),
        ([0, -1], r"target -1 .* 0\.\.2"),
        ([0, 1, 2], r"shape \(2,\), got \(3,\)"),
        (0.5, "class indices"),
        (lambda logits: logits.sum(1), "class indices"),
    ],
)
def test_what_is_no_class_is_refused_in_one_sentence(target, message):
    with pytest.raises(UserError, match=message):
        resolve_target(target, LOGITS)


def test_an_explainer_refuses_a_class_out_of_range(net, x):
    with pytest.raises(UserError, match=r"target 5 .* 0\.\.4"):
        Saliency()(net, x, 5)


def test_score_is_the_logit_of_the_target():
    assert select_score(LOGITS, torch.tensor([2, 0])).tolist() == [2.0, 5.0]


@pytest.mark.parametrize(
    ("output", "message"), [({"out": LOGITS}, "a dict"), (LOGITS[0], r"shape \(3,\)"), (LOGITS[:1], r"shape \(1, 3\)")]
)
def test_outputs_that_are_no_logits_are_named(output, message):
    with pytest.raises(UserError, match=message):
        check_logits(output, 2)


@pytest.mark.parametrize("images", [torch.rand(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)])
def test_inputs_that_are_no_images_are_named(images):
    with pytest.raises(UserError, match=r"expected images \(B, C, H, W\)"):
        Saliency()(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), images, 0)
