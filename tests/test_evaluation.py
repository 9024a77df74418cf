"""The one loop: records are complete and independent of chunks and batches; tables say what the images say."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from explainode.data.batch import Batch
from explainode.errors import UserError
from explainode.evaluation import evaluate, in_batches, is_correct
from explainode.explainers.base import Explainer
from explainode.explainers.controls import RandomMap
from explainode.explainers.gradient import InputXGradient, IntegratedGradients, Saliency
from explainode.explaining import automatic_chunk_size, explain, noise_draws
from explainode.metrics.base import ExplanationMetric
from explainode.metrics.faithfulness import Deletion
from explainode.metrics.infidelity import Infidelity
from explainode.randomness import current_scope, normal_like
from explainode.sharing import SharedResults


class Jitter(nn.Module):
    """A noise block: adds keyed noise when the scope says so."""

    def forward(self, x):
        scope = current_scope()
        if scope is None or not scope.active:
            return x
        return x + 0.5 * normal_like(x, scope.keys(len(x), x.device, "jitter"))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.Tanh(), Jitter(), nn.Conv2d(8, 8, 3, 2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(5)
    )


@pytest.fixture
def images(network):
    x = torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    network(x)  # the lazy layer takes its shape
    return x


class MeanMap(ExplanationMetric):
    """Mean of the heatmap: a metric whose table can be checked by hand."""

    higher_is_better = True

    def measure(self, explanation):
        return explanation.heatmap().flatten(1).mean(1)[:, None]


class NeedsMask(MeanMap):
    needs = frozenset({"mask"})


@pytest.mark.parametrize("noise", ["off", "path", "mean:3"])
@pytest.mark.parametrize(
    "explainer", [Saliency(), IntegratedGradients(steps=6), RandomMap()], ids=lambda e: type(e).__name__
)
def test_result_does_not_depend_on_chunk_or_batch(network, images, noise, explainer):
    whole = explain(explainer, network, images, noise=noise, seed=3)
    for chunk in (1, 3):
        part = explain(explainer, network, images, noise=noise, seed=3, chunk_size=chunk)
        # convolutions of another batch size round differently: 1e-6 of the largest value
        torch.testing.assert_close(
            part.attribution, whole.attribution, rtol=0, atol=1e-6 * float(whole.attribution.abs().max())
        )
    order = torch.tensor([4, 0, 6])
    some = explain(explainer, network, images[order], noise=noise, seed=3, sample_ids=order)
    torch.testing.assert_close(
        some.attribution, whole.attribution[order], rtol=0, atol=1e-6 * float(whole.attribution.abs().max())
    )
    assert torch.equal(some.target, whole.target[order])


def test_noise_changes_the_map_only_when_asked(network, images):
    off = explain(Saliency(), network, images)
    path = explain(Saliency(), network, images, noise="path")
    again = explain(Saliency(), network, images, noise="path")
    other = explain(Saliency(), network, images, noise="path", seed=1)
    assert torch.equal(path.attribution, again.attribution)
    assert not torch.allclose(path.attribution, off.attribution)
    assert not torch.allclose(path.attribution, other.attribution)
    assert not off.stochastic and path.stochastic


def test_mean_is_the_mean_over_paths(network, images):
    mean = explain(Saliency(), network, images, target=2, noise="mean:3")
    path = explain(Saliency(), network, images, target=2, noise="path")
    paths = torch.stack([path.explain(images, draw=d) for d in range(3)])
    torch.testing.assert_close(mean.attribution, paths.mean(0))
    assert torch.equal(paths[0], path.attribution)  # draw 0 is the record's own path
    fresh = mean.explain(images, draw=1)  # paths 3, 4, 5
    torch.testing.assert_close(fresh, torch.stack([path.explain(images, draw=d) for d in (3, 4, 5)]).mean(0))


def test_rows_of_an_expanded_batch_carry_their_image_s_noise(network, images):
    record = explain(Saliency(), network, images, noise="path")
    rows = torch.tensor([2, 2, 5, 0])
    torch.testing.assert_close(record.forward(images[rows], rows), record.logits[rows])
    torch.testing.assert_close(record.explain(images[rows], rows), record.attribution[rows])


def test_record_is_complete(network, images):
    record = explain(IntegratedGradients(steps=64), network, images, target=torch.arange(7) % 5)
    assert (record.forwards, record.backwards) == (64 * 7, 64 * 7)
    expected = record.logits.gather(1, record.target[:, None])[:, 0]
    assert torch.equal(record.score, expected)
    assert record.completeness_error is not None
    assert record.completeness_error.abs().max() < 1e-2 * record.score.abs().max()
    assert explain(Saliency(), network, images).completeness_error is None
    by_callable = explain(Saliency(), network, images, lambda logits: logits.argmin(1))
    assert torch.equal(by_callable.target, record.logits.argmin(1))


def test_shared_store_spares_the_clean_forward(network, images):
    calls = []
    network.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    shared = {}
    explain(Saliency(), network, images)  # what belongs to the network, not to the images, is looked up once
    calls.clear()
    explain(Saliency(), network, images, shared=shared)
    explain(InputXGradient(), network, images, shared=shared)
    assert sum(calls) == 3 * len(images)  # one clean forward, one gradient pass each


@dataclass(frozen=True)
class Hungry(Explainer):
    """Runs out of memory on more than two rows."""

    def attribute(self, model, x, target):
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x.clone()


def test_out_of_memory_halves_the_chunk(network, images, monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    record = explain(Hungry(), network, images, chunk_size=7)
    assert torch.equal(record.attribution, images)


def test_out_of_memory_on_one_image_is_raised(network, images):
    @dataclass(frozen=True)
    class Starving(Explainer):
        def attribute(self, model, x, target):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match="one picture of 16x16 pixels needs more memory than there is") as refused:
        explain(Starving(), network, images, chunk_size=1)
    assert isinstance(refused.value.__cause__, torch.OutOfMemoryError)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"noise": "loud"}, "mean:k"),
        ({"noise": "mean:0"}, "mean:k"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"chunk_size": "big"}, "chunk_size"),
        ({"target": 5}, r"0\.\.4"),
        ({"sample_ids": torch.arange(3)}, "sample_ids"),
    ],
    ids=str,
)
def test_bad_arguments(network, images, arguments, words):
    with pytest.raises(UserError, match=words):
        explain(Saliency(), network, images, **arguments)


def test_bad_images(network):
    with pytest.raises(UserError, match="float"):
        explain(Saliency(), network, torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(UserError, match="shape"):
        explain(Saliency(), network, torch.zeros(3, 16, 16))


def test_noise_draws():
    assert [noise_draws(mode) for mode in ("off", "path", "mean:7")] == [0, 1, 7]


def test_automatic_chunk_size():
    assert automatic_chunk_size(torch.empty(1, 3, 224, 224)) == 16
    assert automatic_chunk_size(torch.empty(1, 3, 32, 32)) == 256
    assert automatic_chunk_size(torch.empty(1, 3, 2000, 2000)) == 1


def test_evaluate_tables_say_what_the_images_say(network, images):
    labels = torch.tensor([0, 1, 2, 3, 4, -1, 0])
    explainers = {"saliency": Saliency(), "ixg": InputXGradient()}
    seen = []
    results = evaluate(
        network,
        explainers,
        {"mean": MeanMap()},
        in_batches(images, labels, batch_size=3),
        n=7,
        name="net",
        split="val",
        epoch=4,
        panel=[5, 1],
        progress=lambda *what: seen.append(what),
    )
    with torch.no_grad():
        hits = (network.eval()(images).argmax(1) == labels)[labels >= 0].double()
    accuracy = next(row for row in results.rows if row.metric == "accuracy")
    assert (accuracy.value, accuracy.n, accuracy.explainer) == (pytest.approx(float(hits.mean())), 6, "")
    for name, explainer in explainers.items():
        values = explain(explainer, network, images).heatmap().flatten(1).mean(1).double()
        row = next(row for row in results.rows if row.explainer == name)
        assert (row.model, row.split, row.epoch, row.n, row.excluded, row.higher_is_better) == (
            "net",
            "val",
            4,
            7,
            0,
            True,
        )
        assert row.value == pytest.approx(float(values.mean()), abs=1e-7)
        assert np.isnan([row.low, row.high]).all()  # seven images are too few for an interval of a mean
        assert "noise=off" in row.protocol
        table = results.per_image["net", name, "mean"]
        np.testing.assert_allclose([table[i] for i in range(7)], values.numpy(), atol=1e-7)
    assert [list(maps.sample_id) for maps in results.maps] == [[5, 1]] * 2
    assert results.maps[0].image.shape == (2, 16, 16, 3) and results.maps[0].attribution.dtype == np.float32
    assert [what[1:] for what in seen] == [(3, 7)] * 2 + [(6, 7)] * 2 + [(7, 7)] * 2


def test_evaluate_does_not_depend_on_the_batch_size(network, images):
    tables = [
        evaluate(network, {"s": Saliency()}, {"m": MeanMap()}, in_batches(images, batch_size=size), n=7).per_image[
            "model", "s", "m"
        ]
        for size in (1, 4, 7)
    ]
    for table in tables[1:]:
        np.testing.assert_allclose(list(table.values()), list(tables[0].values()), atol=1e-6)


def test_evaluate_leaves_the_given_metric_alone(network, images):
    metric = MeanMap()
    evaluate(network, {"s": Saliency()}, {"m": metric}, in_batches(images), n=7)
    assert metric.table() == {}


def test_a_missing_mask_is_named(network, images):
    with pytest.raises(UserError, match="mask"):
        evaluate(network, {"s": Saliency()}, {"m": NeedsMask()}, in_batches(images), n=7)
    masks = torch.ones(7, 16, 16, dtype=torch.int64)
    batch = Batch(images, torch.zeros(7, dtype=torch.int64), torch.arange(7), mask=masks)
    results = evaluate(network, {"s": Saliency()}, {"m": NeedsMask()}, [batch], n=7, panel=[3])
    assert results.maps[0].mask is not None and results.maps[0].mask.shape == (1, 16, 16)


def test_no_images_give_empty_rows(network):
    network(torch.rand(1, 3, 16, 16))
    results = evaluate(network, {"s": Saliency()}, {"m": MeanMap()}, [], n=7)
    assert [row.n for row in results.rows] == [0]
    assert results.maps == []


# ---- what a benchmark asks of the loop


class Counted(nn.Module):
    """Counts the rows that go through a network."""

    def __init__(self, network):
        super().__init__()
        self.network, self.rows = network, 0

    def forward(self, x):
        self.rows += len(x)
        return self.network(x)


def measured(network, images, explainer, kept=None, **options):
    counted = Counted(network)
    explain(explainer, counted, images)  # what belongs to the network, not to the images, is looked up once
    counted.rows = 0
    metrics = {"deletion": Deletion(points=6), "infidelity": Infidelity(draws=4, baseline="zero")}
    found = evaluate(
        counted, {"e": explainer}, metrics, in_batches(images, batch_size=4), n=len(images), kept=kept, **options
    )
    return found, counted.rows


@pytest.mark.parametrize("noise", ["off", "path"])
def test_what_explanations_have_in_common_is_computed_once(network, images, noise):
    (alone, rows), kept = measured(network, images, Saliency(), noise=noise), SharedResults(batches=2)
    first, all_rows = measured(network, images, InputXGradient(), kept, noise=noise)
    second, fewer = measured(network, images, Saliency(), kept, noise=noise)
    n = len(images)
    assert (
        rows == all_rows == n * (1 + 1 + 1 + 4 + 4)
    )  # clean, explanation, blurred, 4 points between, 4 random squares
    assert fewer == n * (1 + 4), "the explanation and the points of its own order"
    assert second.per_image == alone.per_image and first.per_image != alone.per_image


def test_shared_results_stay_within_their_memory(network, images):
    roomy, tight, none = SharedResults(2), SharedResults(2, limit=2 * 1024), SharedResults(2, limit=0)
    found = [measured(network, images, Saliency(), kept) for kept in (roomy, tight, none)]
    assert found[0][0].per_image == found[1][0].per_image == found[2][0].per_image
    pixels = images.numel() * images.element_size()
    assert roomy.size > pixels and none.size == 0
    assert 0 < tight.size <= 2 * 1024 < pixels, "outputs stay, pictures do not"
    again = [measured(network, images, Saliency(), kept) for kept in (roomy, tight, none)]
    assert [rows for _, rows in again] == [35, 35, 77], "pictures are made without the network; outputs are not"
    assert again[0][0].per_image == again[1][0].per_image == again[2][0].per_image == found[0][0].per_image


def test_a_slice_of_a_large_tensor_counts_as_the_whole(images):
    kept = SharedResults(1, limit=1024)
    batch = next(iter(in_batches(images)))
    kept.close(
        batch,
        {"slice": torch.zeros(1000)[:2], "unknown": object(), "small": (torch.zeros(2), {"number": 1.0}), "flag": None},
    )
    assert set(kept.open(batch)) == {"small", "flag"} and kept.size == 8
    kept.open(batch)["other"] = 1
    assert "other" not in kept.open(batch)


class Broken(MeanMap):
    def measure(self, explanation):
        if int(explanation.sample_ids[0]) >= 4:
            raise RuntimeError("no second batch")
        return super().measure(explanation)


def test_a_metric_that_fails_leaves_the_others_alone(network, images):
    said = []
    metrics = {"broken": Broken(), "mean": MeanMap()}
    arguments = (network, {"s": Saliency(), "r": RandomMap()}, metrics, list(in_batches(images, batch_size=4)))
    found = evaluate(*arguments, n=7, failed=lambda e, m, error: said.append((e, m, str(error))))
    assert said == [("s", "broken", "no second batch"), ("r", "broken", "no second batch")], "once each"
    assert {(row.explainer, row.metric) for row in found.rows} == {("s", "mean"), ("r", "mean")}
    whole = evaluate(network, {"s": Saliency()}, {"mean": MeanMap()}, in_batches(images, batch_size=4), n=7)
    assert found.per_image["model", "s", "mean"] == whole.per_image["model", "s", "mean"]
    with pytest.raises(RuntimeError, match="no second batch"):
        evaluate(*arguments, n=7)


def test_correctness_is_that_of_the_records_own_noise(network, images):
    labels = torch.tensor([0, 1, 2, 3, 4, -1, 0])
    for noise in ("off", "path"):
        found = is_correct(network, in_batches(images, labels, batch_size=3), noise=noise, seed=2)
        logits = explain(Saliency(), network, images, noise=noise, seed=2).logits
        assert found == {i: float(logits[i].argmax() == labels[i]) for i in (0, 1, 2, 3, 4, 6)}
    with pytest.raises(UserError, match="chunk_size"):
        is_correct(network, in_batches(images, labels), chunk_size=0)


def test_accuracy_may_be_known_from_other_images(network, images):
    known = {10: 1.0, 11: 0.0, 12: 1.0, 13: 1.0}
    found = evaluate(
        network, {"s": Saliency()}, {"mean": MeanMap()}, in_batches(images, torch.zeros(7).long()), n=7, correct=known
    )
    row = next(row for row in found.rows if row.metric == "accuracy")
    assert (row.value, row.n) == (0.75, 4) and found.per_image["model", "", "accuracy"] == known


class Half(ExplanationMetric):
    """One result that is missing for the first image by accident, one that is not about it."""

    columns = ("broken", "about_others")
    conditional = frozenset({"about_others"})

    def measure(self, explanation):
        values = torch.ones(len(explanation), 2, dtype=torch.float64)
        values[0] = torch.nan
        return values


def test_what_a_result_is_not_about_is_no_warning(network, images):
    found = evaluate(network, {"saliency": Saliency()}, {"half": Half()}, in_batches(images), n=7)
    assert {row.metric: row.excluded for row in found.rows if row.explainer} == {
        "half.broken": 1,
        "half.about_others": 1,
    }
    (warning,) = found.warnings
    assert "half.broken: 1 of 7" in warning
