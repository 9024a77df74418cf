"""Results that look like a run's: two models, four explainers and two controls, three epochs, structured maps; all from one seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from explainode.metrics.results import Curve, Maps, Results, Row
from explainode.runs.legacy import control_of, role_of

MODELS = ("resnet", "sde")
EXPLAINERS = ("saliency", "ig", "smoothgrad", "gradcam", "random_map", "centre_prior")
DIRECTIONS = {"deletion": False, "insertion": True, "max_sensitivity": False, "smoothness.total_variation": None}


def _pictures(rng: np.random.Generator, n: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, side, side, 3) uint8 discs on a textured ground, and their (n, side, side) masks."""
    y, x = np.mgrid[:side, :side] / side
    center, radius = rng.uniform(0.3, 0.7, (n, 2, 1, 1)), rng.uniform(0.12, 0.28, (n, 1, 1))
    inside = (y - center[:, 0]) ** 2 + (x - center[:, 1]) ** 2 < radius**2
    waves = np.sin(rng.uniform(8, 30, (n, 1, 1)) * x + rng.uniform(8, 30, (n, 1, 1)) * y)
    ground = 110 + 45 * waves[..., None] * rng.uniform(0.2, 1, (n, 1, 1, 3)) + rng.normal(0, 8, (n, side, side, 3))
    return np.where(inside[..., None], rng.uniform(20, 235, (n, 1, 1, 3)), ground).clip(0, 255).astype(np.uint8), inside


def _attribution(rng: np.random.Generator, explainer: str, inside: np.ndarray) -> np.ndarray:
    n, side, _ = inside.shape
    if explainer == "gradcam":
        small = inside.reshape(n, 8, side // 8, 8, side // 8).mean((2, 4)) + rng.uniform(0, 0.3, (n, 8, 8))
        return small[:, None]
    if explainer == "centre_prior":
        y, x = np.mgrid[:side, :side] / side - 0.5
        return np.broadcast_to(np.exp(-8 * (x**2 + y**2)), (n, 1, side, side))
    noise = rng.normal(0, 1, (n, 3, side, side))
    if explainer == "random_map":
        return noise[:, :1]
    weight = {"saliency": 0.6, "ig": 1.0, "smoothgrad": 2.0}.get(explainer, 1.0)
    return (inside[:, None] * (weight * np.abs(rng.normal(0, 1, (n, 3, side, side))) + weight) + 0.7 * noise) * 1e-3


def _ends(values: np.ndarray) -> tuple[float, float]:
    """Two standard errors either side, for any number of images."""
    half = 2 * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean() - half, values.mean() + half


@pytest.fixture(scope="session")
def make_results() -> Callable[..., Results]:
    """A function that builds the results of a run."""

    def build(
        images: int = 12,
        side: int = 64,
        n: int = 48,
        epochs: int = 3,
        models: tuple[str, ...] = MODELS,
        explainers: tuple[str, ...] = EXPLAINERS,
    ) -> Results:
        rng = np.random.default_rng(0)
        results = Results()
        picture, inside = _pictures(rng, images, side)
        ids = np.arange(images) * (n // images)
        label = rng.integers(0, 4, images)
        hard = rng.normal(0, 0.05, n)  # what makes an image hard is common to all models: that is why tests are paired
        x = np.linspace(0, 1, 41)
        for epoch in range(epochs):
            for i, model in enumerate(models):
                right = (rng.random(n) < 0.9 + 0.02 * epoch).astype(float)
                results.per_image[model, "", "accuracy"] = dict(enumerate(right.tolist()))
                low, high = _ends(right)
                results.rows.append(
                    Row(
                        epoch,
                        "val",
                        model,
                        "",
                        "accuracy",
                        right.mean(),
                        low,
                        high,
                        n,
                        0,
                        0.0,
                        True,
                        "accuracy[top1]",
                        "performance",
                    )
                )
                for j, explainer in enumerate(explainers):
                    poor = 0.15 if explainer.startswith(("random", "centre")) else 0.02 * j
                    for metric, direction in DIRECTIONS.items():
                        base = {"deletion": 0.3 + poor, "insertion": 0.6 - poor, "max_sensitivity": 0.7 - 0.12 * i}.get(
                            metric, 0.4
                        )
                        values = base - 0.02 * epoch + hard + rng.normal(0, 0.03, n)
                        low, high = _ends(values)
                        results.per_image[model, explainer, metric] = dict(enumerate(values.tolist()))
                        protocol = f"{metric}[blur11,s101,p(y),stable]#0a1b2c3d noise=off seed=0"
                        row = Row(
                            epoch,
                            "val",
                            model,
                            explainer,
                            metric,
                            values.mean(),
                            low,
                            high,
                            n,
                            0,
                            1.5,
                            direction,
                            protocol,
                            role_of(protocol),
                            control_of(explainer),
                        )
                        results.rows.append(row)
                    for metric in ("deletion", "insertion"):
                        mean = np.exp(-x * (4 - 8 * poor)) if metric == "deletion" else 1 - np.exp(-x * (4 - 8 * poor))
                        mean = mean * (0.95 - 0.03 * i)
                        results.curves[model, explainer, metric] = Curve(
                            x, mean, mean - 0.03, mean + 0.03, "pixels removed", "probability"
                        )
                    attribution = _attribution(rng, explainer, inside)
                    if epoch == epochs - 1:
                        target = np.where(rng.random(images) < 0.85, label, (label + 1) % 4)
                        results.maps.append(
                            Maps(
                                model,
                                explainer,
                                epoch,
                                picture,
                                attribution.astype(np.float32),
                                ids,
                                label,
                                target,
                                rng.uniform(0.4, 1, images),
                                inside.astype(np.int8),
                                control=control_of(explainer),
                            )
                        )
        return results

    return build
