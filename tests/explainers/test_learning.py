"""What explainers learn lies apart from their configuration: it is saved, hashed, loaded again, and belongs to one network."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from explainode.errors import UserError
from explainode.evaluation import in_batches
from explainode.explainers.base import Explainer
from explainode.explainers.learning import Learned, LearningExplainer
from explainode.explaining import explain
from explainode.hashing import network_digest


@dataclass(frozen=True)
class MeanImage(LearningExplainer):
    """Pixels against the mean of what was seen; scale times."""

    scale: float = 1.0

    def learn(self, model, batches):
        return {"mean": torch.cat([batch.image for batch in batches]).mean(0, keepdim=True)}

    def attribute(self, model, x, target):
        return self.scale * (x - self.state["mean"])


@pytest.fixture
def fitted(net, x):
    return MeanImage(scale=2.0).fit(net, in_batches(x))


def test_configuration_and_what_was_learned_are_apart(fitted, x):
    assert fitted == MeanImage(scale=2.0) and repr(fitted) == "MeanImage(scale=2.0)"
    assert MeanImage().learned is None and torch.equal(fitted.state["mean"], x.mean(0, keepdim=True))


def test_it_comes_back_from_its_file(fitted, net, x, tmp_path):
    fitted.learned.save(tmp_path / "deep" / "learned.pt")
    again = MeanImage(scale=2.0).knowing(Learned.load(tmp_path / "deep" / "learned.pt"))
    assert again.learned.digest == fitted.learned.digest
    assert torch.equal(again(net, x, 0), fitted(net, x, 0))


def test_a_file_that_was_changed_is_refused(fitted, tmp_path):
    fitted.learned.save(tmp_path / "learned.pt")
    found = torch.load(tmp_path / "learned.pt", weights_only=True)
    found["state"]["mean"][0, 0, 0, 0] += 1
    torch.save(found, tmp_path / "learned.pt")
    with pytest.raises(UserError, match="its hash differs"):
        Learned.load(tmp_path / "learned.pt")
    (tmp_path / "learned.pt").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="remove it and fit again"):
        Learned.load(tmp_path / "learned.pt")


def test_it_belongs_to_one_network(fitted, net, x):
    explain(fitted, net, x, 0)
    with torch.no_grad():
        next(net.parameters()).add_(1)
    with pytest.raises(UserError, match="fitted to another network"):
        explain(fitted, net, x, 0)


def test_before_it_is_fitted(net, x):
    with pytest.raises(UserError, match="has not seen data yet"):
        explain(MeanImage(), net, x, 0)


def test_who_fits_says_so():
    with pytest.raises(TypeError, match="learns = True"):

        class Silent(Explainer):
            def fit(self, model, batches):
                return self


def test_digests_follow_the_weights(net):
    before = network_digest(net)
    assert network_digest(net) == before
    with torch.no_grad():
        next(net.parameters()).mul_(2)
    changed = network_digest(net)
    with torch.no_grad():
        next(net.parameters()).mul_(0.5)
    assert changed != before == network_digest(net)
