"""`explainode evaluate run=` of a distilled surrogate: its teacher is made again, and the gap measured."""

import csv
from pathlib import Path

import pytest
import torch
import yaml

import explainode
from explainode.cli import main as door
from explainode.errors import UserError
from explainode.explainers.adjoint import kappa
from explainode.jobs.networks import run_networks, run_teachers
from explainode.models.weights import load_weights

TEACHER = {
    "_target_": "explainode.models.resnet.six_block_resnet", "in_channels": 3, "width": 16, "blocks": 2, "num_classes": 8, "noise": None,
    "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "residual_scale": 1.0,
}  # fmt: skip
SOLVER = {"_target_": "explainode.dynamics.solver.RungeKutta", "tableau": "euler", "steps": 2}


def teacher_of(seed):
    torch.manual_seed(seed)
    network = explainode.get("model/six_block", width=16, blocks=2, num_classes=8).eval()
    network.linear.weight.data *= 20
    return network


@pytest.fixture
def run(tmp_path):
    """A run directory as `explainode train module=surrogate` leaves it, around a surrogate that is one step of learning away from its teacher."""
    teacher, weights = teacher_of(0), tmp_path / "teacher.pt"
    torch.save(teacher.state_dict(), weights)
    surrogate = explainode.get(
        "model/neural_ode", teacher=teacher, solver=explainode.get("solver/euler", steps=2)
    ).eval()
    with torch.no_grad():
        surrogate.network.blocks[0].field.block.branch.conv2.weight.mul_(1.5)
    folder = tmp_path / "run"
    (folder / "checkpoints" / "ode").mkdir(parents=True)
    torch.save(
        {"state_dict": {f"network.{k}": t for k, t in surrogate.state_dict().items()}},
        folder / "checkpoints" / "ode" / "last.ckpt",
    )
    model = {
        "_target_": "explainode.models.neural_ode.neural_ode", "teacher": TEACHER | {"weights": str(weights)}, "solver": SOLVER,
        "tied": False, "weights": None,
    }  # fmt: skip
    data = explainode.get("data/shapes", test_size=12, size=32, train_size=8, val_size=8)
    settings = {
        "data": {"_target_": "explainode.data.shapes.ShapesData", "train_size": 8, "val_size": 8, "test_size": 12, "size": 32},
        "model": model, "module": {"_target_": "explainode.training.surrogate.Surrogate", "train_discrete": False}, "variant": "ode",
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder, teacher, surrogate, next(data.batches("test", range(12), 12)), settings


def both(settings):
    networks = run_networks(settings)
    said = []
    return networks, run_teachers(settings, networks, said.append), said


def settings_of(run, **model):
    folder, *_, trained = run
    return {
        "run": str(folder),
        "checkpoint": None,
        "variant": "model",
        "trained_as": "ode",
        "model": trained["model"] | model,
    }


def test_the_teacher_comes_back_with_its_surrogate(run):
    _, teacher, surrogate, batch, _ = run
    networks, teachers, _ = both(settings_of(run))
    with torch.no_grad():
        assert torch.equal(teachers["ode"](batch.image), teacher(batch.image))
        assert torch.equal(networks["ode"](batch.image), surrogate(batch.image))


def test_a_checkpoint_that_was_named_has_its_teacher_too(run):
    settings = settings_of(run) | {"checkpoint": str(run[0] / "checkpoints" / "ode" / "last.ckpt")}
    networks, teachers, _ = both(settings)
    assert list(networks) == list(teachers) == ["ode@last"]


def test_other_networks_have_no_teacher(run):
    folder, *_, trained = run
    trained["module"] = {"_target_": "explainode.training.classifier.Classifier"}  # a neural ODE trained on labels
    (folder / "config.yaml").write_text(yaml.safe_dump(trained))
    assert both(settings_of(run))[1] == {}


def test_a_teacher_whose_file_is_gone_is_said_to_be(run):
    Path(run[-1]["model"]["teacher"]["weights"]).unlink()
    networks, teachers, (sentence,) = both(settings_of(run))
    assert list(networks) == ["ode"] and teachers == {}
    assert "the gap to the teacher is not measured" in sentence


def test_a_file_that_was_named_for_it_must_be_there_and_be_its_teachers(run, tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.pt"):
        both(settings_of(run, teacher=TEACHER | {"weights": str(tmp_path / "nowhere.pt")}))
    torch.save(teacher_of(1).state_dict(), tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"copied layer '.*' differs from the teacher's"):
        both(settings_of(run, teacher=TEACHER | {"weights": str(tmp_path / "other.pt")}))


def test_evaluate_measures_the_gap_again(run, tmp_path, monkeypatch, capsys):
    folder, teacher, surrogate, batch, _ = run
    monkeypatch.chdir(tmp_path)
    words = ["explainer=[saliency]", "metric=[smoothness]", "evaluation.images=12", "evaluation.device=cpu"]
    assert door.main(["evaluate", f"run={folder}", *words, "run_dir=again"]) == 0
    with open(tmp_path / "again" / "metrics.csv", newline="") as file:
        rows = {(row["model"], row["metric"]): float(row["value"]) for row in csv.DictReader(file) if row["value"]}
    with torch.no_grad():
        mine, other = teacher(batch.image), surrogate(batch.image)
    assert (
        rows["ode", "kappa"] == pytest.approx(float(kappa(mine, other).mean()), abs=1e-5)
        and rows["ode", "kappa"] > 1e-3
    )
    assert rows["ode", "agreement"] == pytest.approx(float((mine.argmax(1) == other.argmax(1)).float().mean()))
    assert 0 < rows["ode", "map_cosine"] < 1
    assert "kappa" in capsys.readouterr().out
    # with one Euler step in each block, the surrogate would be its teacher but for the branch that was changed: other steps, another gap
    assert door.main(["evaluate", f"run={folder}", *words, "run_dir=finer", "model.solver.steps=8"]) == 0
    with open(tmp_path / "finer" / "metrics.csv", newline="") as file:
        finer = {(row["model"], row["metric"]): float(row["value"]) for row in csv.DictReader(file) if row["value"]}
    finer_network = surrogate.with_solver(explainode.get("solver/euler", steps=8))
    load_weights(finer_network, folder / "checkpoints" / "ode" / "last.ckpt")
    with torch.no_grad():
        assert finer["ode", "kappa"] == pytest.approx(float(kappa(mine, finer_network(batch.image)).mean()), abs=1e-5)


def test_a_setting_that_the_runs_model_does_not_have_is_a_sentence(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert door.main(["evaluate", f"run={run[0]}", "model.solver.stepz=8"]) == 2
    assert "model.solver.stepz=8: the run's model has no such setting" in capsys.readouterr().err


def test_distilling_a_network_without_a_teacher_is_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [
        "model=six_block",
        "module=surrogate",
        "data.size=32",
        "data.train_size=8",
        "data.val_size=8",
        "data.test_size=8",
    ]
    words += ["trainer=debug", "evaluation.images=2"]
    assert door.main(["train", *words, "run_dir=run"]) == 2
    err = capsys.readouterr().err
    assert (
        "made from a teacher" in err
        and "model=neural_ode" in err
        and "Traceback" not in err
        and "nterpolation" not in err
    )
