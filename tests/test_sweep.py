"""scripts/sweep.yaml: what W&B's agent would type composes, and every parameter is a setting that training has."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from explainode.cli.main import VERBS
from explainode.errors import UserError
from explainode.registry.composing import compose

SWEEP = yaml.safe_load((Path(__file__).parents[1] / "scripts" / "sweep.yaml").read_text(encoding="utf-8"))


def typed(values: dict[str, object]) -> list[str]:
    """The command of W&B's agent: `${args_no_hyphens}` becomes key=value words, `${env:NAME}` the environment's value."""
    words: list[str] = []
    for word in SWEEP["command"]:
        words += (
            [f"{k}={v}" for k, v in values.items()]
            if word == "${args_no_hyphens}"
            else [word.replace("${env:CIFAR10}", "/data")]
        )
    return words


def points() -> list[dict[str, object]]:
    """One end of every parameter's range, and the other."""
    first = {k: p["values"][0] if "values" in p else p["min"] for k, p in SWEEP["parameters"].items()}
    last = {k: p["values"][-1] if "values" in p else p["max"] for k, p in SWEEP["parameters"].items()}
    return [first, last]


@pytest.mark.parametrize("values", points())
def test_every_point_composes_and_arrives(values):
    program, verb, *overrides = typed(values)
    assert program == SWEEP["program"] == "explainode" and verb in VERBS
    config = compose(verb, overrides)
    for name, value in values.items():
        assert OmegaConf.select(config, name) == pytest.approx(value), name
    assert "wandb" in config.logger and config.data.root == "/data"


def test_a_parameter_that_training_does_not_have_is_refused():
    with pytest.raises(UserError, match=r"no setting named 'model\.noise\.magnitud'"):
        compose("train", typed({"model.noise.magnitud": 0.1})[2:])


def test_the_goal_is_a_number_that_training_logs():
    """As `Classifier` names it; the agent looks for it in the run's history."""
    assert SWEEP["metric"] == {"name": "val/accuracy", "goal": "maximize"}
