"""Classes in groups: against the maximum, the maps against the network's own, and the groups of VOC against ImageNet's names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import explainode
from explainode import registry
from explainode.data.voc2012 import CLASS_NAMES
from explainode.errors import UserError
from explainode.explainers.gradient import Saliency
from explainode.models.class_groups import ClassGroups, members
from explainode.models.names import imagenet_classes

GROUPS = {"a": [3, [5, 7]], "b": [0], "c": [[1, 2], 9]}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 10))


def test_the_logit_of_a_group_is_its_largest(network):
    x = torch.rand(6, 3, 8, 8)
    logits, grouped = network(x), ClassGroups(network, GROUPS)(x)
    expected = torch.stack([logits[:, members(group)].amax(1) for group in GROUPS.values()], 1)
    assert torch.equal(grouped, expected) and members([3, [5, 7]]) == [3, 5, 6, 7]


def test_a_group_is_explained_as_its_likeliest_class(network):
    x = torch.rand(6, 3, 8, 8)
    model, logits = ClassGroups(network, GROUPS), network(x)
    for g, group in enumerate(map(members, GROUPS.values())):
        own = torch.tensor(group)[logits[:, group].argmax(1)]
        assert torch.equal(Saliency()(model, x, g), Saliency()(network, x, own))
    relevance = explainode.get("explainer/lrp_epsilon")
    best = torch.tensor([members(list(GROUPS.values())[g]) [logits[k, members(list(GROUPS.values())[g])].argmax()]
                         for k, g in enumerate(model(x).argmax(1).tolist())])  # fmt: skip
    torch.testing.assert_close(relevance(model, x), relevance(network, x, best))


def test_refusals(network):
    for groups, words in (
        ({"a": [1], "b": []}, "without classes"),
        ({"a": [1, 2], "b": [[2, 3]]}, "class 2 of the network stands in two groups"),
        ({"a": [[3, 1]]}, "ranges"),
        ({"a": [[1, 2, 3]]}, "ranges"),
    ):
        with pytest.raises(UserError, match=words):
            ClassGroups(network, groups)
    with pytest.raises(UserError, match="groups name class 10, but the network has 10 classes"):
        ClassGroups(network, {"a": [10]})(torch.rand(1, 3, 8, 8))


WELL_KNOWN = {
    "aeroplane": ["airliner"], "bicycle": ["mountain bike"], "bird": ["robin", "cock", "flamingo", "king penguin", "albatross", "goose"],
    "boat": ["speedboat", "gondola", "yawl"], "bottle": ["wine bottle", "beer bottle"], "bus": ["school bus", "minibus"],
    "car": ["sports car", "cab", "convertible"], "cat": ["tabby", "Egyptian cat"], "chair": ["rocking chair"], "cow": ["ox"],
    "diningtable": ["dining table"], "dog": ["Chihuahua", "golden retriever", "Mexican hairless"], "horse": ["sorrel"], "motorbike": ["moped"],
    "person": ["ballplayer", "scuba diver"], "pottedplant": ["pot"], "sheep": ["ram"], "sofa": ["studio couch"],
    "train": ["bullet train", "steam locomotive"], "tvmonitor": ["television", "monitor"],
}  # fmt: skip
NOT_A_MEMBER = {
    "bird": ["tusker", "sea lion", "crane", "birdhouse"], "dog": ["timber wolf", "dingo", "hotdog", "tabby"],
    "cat": ["cougar", "lion", "lynx"], "car": ["ambulance", "go-kart", "freight car"], "boat": ["boathouse", "submarine"],
    "horse": ["zebra"], "chair": ["park bench"], "bus": ["minivan"], "train": ["streetcar"],
}  # fmt: skip


def test_groups_of_voc():
    """ImageNet's own names say what the numbers are."""
    groups = registry.load("model/imagenet_as_voc").groups
    names = imagenet_classes()
    assert list(groups) == list(CLASS_NAMES)
    found = {
        name: {names[k] for k in members([k if isinstance(k, int) else list(k) for k in groups[name]])}
        for name in groups
    }
    for voc, known in WELL_KNOWN.items():
        assert set(known) <= found[voc], f"{set(known) - found[voc]} is not in {voc}"
    for voc, foreign in NOT_A_MEMBER.items():
        assert set(foreign) <= set(names) and not set(foreign) & found[voc]
    assert len(found["dog"]) == 118 and len(found["bird"]) == 59  # as WordNet has them in ImageNet


def test_from_conf_with_another_network():
    model = explainode.get("model/imagenet_as_voc").eval()
    with torch.no_grad():
        assert model(torch.rand(2, 3, 64, 64)).shape == (2, 20) and model.image_size == 224
