"""What a configuration may name: by exact name and kind, with the user's own consent; and a run that somebody sent is only read."""

from __future__ import annotations

import time
import zipfile
from importlib import import_module

import pytest
import torch
import yaml
from PIL import Image

from explainode.cli.main import main
from explainode.errors import UserError
from explainode.models.resnet import six_block_resnet
from explainode.registry import entries, targets
from explainode.registry.aliases import ALIASES, current_name
from explainode.registry.build import instantiate
from explainode.registry.composing import compose
from explainode.registry.foreign import foreign_run
from explainode.registry.kinds import KINDS, slot_named
from explainode.registry.targets import check_targets, locate

MODEL = {"_target_": "explainode.models.resnet.six_block_resnet", "width": 8, "blocks": 2, "num_classes": 8}
DATA = {
    "_target_": "explainode.data.shapes.ShapesData",
    **dict.fromkeys(("train_size", "val_size", "test_size"), 8),
    "size": 16,
}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Neither consent nor folders of other tests."""
    monkeypatch.setattr(targets, "_extra_targets", [])
    monkeypatch.setattr(entries, "_extra_folders", [])
    monkeypatch.delenv(targets.CONSENT, raising=False)


def write_run(folder, **settings):
    """A trained run of two blocks, with the settings of a stranger."""
    torch.manual_seed(0)
    checkpoints = folder / "checkpoints" / "net"
    checkpoints.mkdir(parents=True)
    torch.save(
        {"state_dict": six_block_resnet(width=8, blocks=2, num_classes=8).state_dict()}, checkpoints / "epoch000.ckpt"
    )
    config = {"model": MODEL, "data": DATA, "variant": "net", "variants": {}, "image_size": 16} | settings
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def words(verb, run, place):
    """The command line of a verb that reads a run."""
    small = ["evaluation.images=2", "metric=[smoothness]", "explainer=[saliency]", "evaluation.panel=1"]
    return {
        "explain": ["explain", f"{place}/picture.png", "-m", "saliency", "--run", str(run), "-o", f"{place}/out"],
        "evaluate": ["evaluate", f"run={run}", f"run_dir={place}/out", *small],
        "benchmark": ["benchmark", f"runs=[{run}]", f"run_dir={place}/out", *small],
    }[verb]


VERBS = ("explain", "evaluate", "benchmark")
NOISE = {"_target_": "explainode.dynamics.noise.Noise"}
HOSTILE = {
    "a pickle of its own": {
        "model": {
            "_target_": "lightning.pytorch.core.saving._load_from_checkpoint",
            "cls": None,
            "checkpoint_path": "PLACE/x",
        }
    },
    "a pickle as augmentation": {
        "data": DATA | {"augment": {"_target_": "lightning.pytorch.core.saving._load_from_checkpoint"}}
    },
    "our own door": {
        "model": {
            "_target_": "explainode.cli.main.main",
            "arguments": ["train", "allow_targets=[os]", "run_dir=PLACE/x"],
        }
    },
    "consent of its own": {
        "variants": {
            "net": {"noise": {"_target_": "explainode.registry.targets.allow_targets", "prefixes": ["os"]}},
            "b": {"_target_": "os.system", "command": "touch PLACE/x"},
        }
    },
    "allow_targets": {"allow_targets": ["os"], "model": {"_target_": "os.system", "command": "touch PLACE/x"}},
    "a report": {"model": {"_target_": "explainode.report.html.write_report", "path": "PLACE/x"}},
    "a file of settings": {
        "model": {
            "_target_": "lightning.pytorch.core.saving.save_hparams_to_yaml",
            "config_yaml": "PLACE/x",
            "hparams": {},
        }
    },
    "a logger as model": {"model": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "PLACE/x"}},
    "a logger as noise": {
        "model": MODEL | {"noise": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "PLACE/x"}}
    },
    "a callback as data": {"data": {"_target_": "explainode.callbacks.explanations.ExplanationCallback"}},
    "a checkpoint writer": {"model": {"_target_": "explainode.training.checkpoint.AtomicCheckpointIO"}},
    "a module as model": {"model": {"_target_": "explainode.training.classifier.Classifier", "network": MODEL}},
    "a model as data": {"data": MODEL},
    "a class of a library": {"model": {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 3}},
    "a place where nothing is built": {"model": MODEL | {"mean": [NOISE]}},
    "a name seen through a module": {"model": {"_target_": "explainode.models.resnet.nn.Identity"}},
    "a name that is no text": {"model": {"_target_": ["os.system"]}},
    "a partial": {"model": MODEL | {"_partial_": True, "_args_": [1]}},
    "a partial model": {"model": MODEL | {"_partial_": True}},
    "a secret": {
        "model": MODEL | {"weights": "${oc.env:EXPLAINODE_TEST_SECRET}"},
        "data": DATA | {"seed": "${oc.env:X}"},
    },
    "a reference to itself": {"model": MODEL | {"width": "${model.width}"}},
    "a name that leads out": {"variants": {"../../up": {}}},
    "a variant that leads out": {"variant": "../../up"},
    "null": {"model": None},
    "a model of nothing": {"model": {"width": 8}},
    "a width that fills the memory": {"model": MODEL | {"width": 20000}},
    "a width that is none": {"model": MODEL | {"width": -1}},
    "a picture that fills the memory": {"image_size": 60000},
    "a size that is none": {"image_size": "32"},
    "no model": {"model": "text", "variants": [1]},
}


@pytest.mark.parametrize(("kind", "verb"), [(kind, verb) for kind in HOSTILE for verb in VERBS])
def test_a_run_that_somebody_sent_is_only_read(kind, verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXPLAINODE_TEST_SECRET", "hush")
    Image.new("RGB", (20, 20), "teal").save(tmp_path / "picture.png")
    settings = yaml.safe_load(yaml.safe_dump(HOSTILE[kind]).replace("PLACE", str(tmp_path / "place")))
    run = write_run(tmp_path / "run", **settings)
    before = sorted(tmp_path.rglob("*"))
    assert main(words(verb, run, tmp_path)) == 2
    said = capsys.readouterr()
    (sentence,) = [line for line in said.err.splitlines() if line.startswith("explainode: ")]
    assert "hush" not in said.out + said.err and len(sentence) < 900
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"


@pytest.mark.parametrize("verb", VERBS)
def test_an_honest_run_is_read_as_before(verb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 20), "teal").save(tmp_path / "picture.png")
    noise = NOISE | {"magnitude": 0.0, "kind": "additive", "normalize": True, "where": "before"}
    run = write_run(tmp_path / "run", model=MODEL | {"noise": noise}, module={"_target_": "somewhere.else.Module"})
    assert main(words(verb, run, tmp_path)) == 0


def test_nothing_is_fetched_because_a_run_says_so(tmp_path):
    data = {"_target_": "explainode.data.random_labels.RandomLabelsData", "source": {"download": True, "root": "x"}}
    assert foreign_run(write_run(tmp_path / "run", data=data))["data"]["source"]["download"] is False


def test_a_checkpoint_that_leads_out_of_the_run_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 20), "teal").save(tmp_path / "picture.png")
    run = write_run(tmp_path / "run")
    (checkpoint,) = run.rglob("*.ckpt")
    checkpoint.rename(tmp_path / "elsewhere.ckpt")
    checkpoint.symlink_to(tmp_path / "elsewhere.ckpt")
    assert main(words("explain", run, tmp_path)) == 2
    assert "leads out of" in capsys.readouterr().err


# ---- consent


def my_package(folder):
    """A package of the user's, with a model, something that is none, and a folder of configurations that names them."""
    (folder / "mine").mkdir()
    (folder / "mine" / "__init__.py").touch()
    (folder / "mine" / "nets.py").write_text(
        "from pathlib import Path\nfrom torch import nn\n"
        "class Net(nn.Module):\n    def __init__(self, part=None):\n        super().__init__()\n"
        "def build(num_classes=2):\n    return Net()\n"
        "def write(path):\n    Path(path).touch()\n"
        "class Writer:\n    def __init__(self, path):\n        Path(path).touch()\n"
    )
    (folder / "conf" / "model").mkdir(parents=True)
    (folder / "conf" / "experiment").mkdir()
    (folder / "conf" / "model" / "built.yaml").write_text("# x.\n_target_: mine.nets.build\nnum_classes: 2\n")
    return folder / "conf"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    folder = my_package(tmp_path)
    entries.add_config_folder(folder)
    yield folder
    for name in ("mine", "mine.nets"):
        import_module("sys").modules.pop(name, None)


def test_a_package_is_the_users_to_allow(mine):
    with pytest.raises(UserError, match="not allowed"):
        compose("train", ["model=built"])
    assert compose("train", ["model=built", "allow_targets=[mine]"]).model._target_ == "mine.nets.build"
    assert instantiate({"_target_": "mine.nets.build"}, "model").__class__.__name__ == "Net"
    with pytest.raises(UserError, match="derives from"):
        instantiate({"_target_": "mine.nets.Writer", "path": "x"}, "model")
    with pytest.raises(UserError, match="nothing is called"):
        instantiate({"_target_": "mine.nets.nn.Module"}, "model")


def test_the_environment_allows_too_and_both_are_shown(mine, monkeypatch, capsys):
    monkeypatch.setenv(targets.CONSENT, "mine")
    assert compose("train", ["model=built"]).model.num_classes == 2
    assert main(["explain", "picture.png", "--model", "built"]) == 2
    assert "EXPLAINODE_ALLOW_TARGETS lets configurations name mine" in capsys.readouterr().err


def test_a_file_cannot_allow_what_it_names(mine):
    (mine / "experiment" / "evil.yaml").write_text(
        "# @package _global_\n# x.\nallow_targets: [os]\nexplainer:\n  x: {_target_: os.system}\n"
    )
    with pytest.raises(UserError, match="a file cannot allow"):
        compose("train", ["experiment=evil"])
    with pytest.raises(UserError, match="a file cannot allow"):
        compose("train", ["experiment=evil"])  # nor the second time


def test_a_run_has_the_users_consent_for_classes_of_a_kind_and_registered_functions(mine, tmp_path):
    def check(name, **parameters):
        check_targets({"_target_": name} | parameters, "model", slot_named("model"), foreign=True)

    with pytest.raises(UserError, match="not allowed"):
        check("mine.nets.Net")
    targets.allow_targets(["mine"])
    check("mine.nets.Net", part=MODEL)
    check("mine.nets.build")
    with pytest.raises(UserError, match="not allowed"):
        check("mine.nets.write", path="x")
    with pytest.raises(UserError, match="not allowed"):
        check("mine.nets.Writer", path="x")
    with pytest.raises(UserError, match="not allowed"):
        check("mine.nets.Net", part={"_target_": "lightning.pytorch.loggers.CSVLogger"})


@pytest.mark.parametrize(
    "word",
    [
        "+explainer.x._target_=os.system",
        "+explainer.x._target_=explainode.report.html.write_report",
        "+callback.x._target_=explainode.files.replace_file",
        "+data.augment._target_=lightning.pytorch.core.saving.save_hparams_to_yaml",
        "module.optimizer._target_=torch.nn.Linear",
        "logger.csv._target_=explainode.metrics.cost.Cost",
    ],
)
def test_an_override_names_what_belongs_there(word):
    with pytest.raises(UserError, match="not allowed"):
        config = compose("train", [word])
        locate(config.module.optimizer._target_, slot_named("optimizer"))


@pytest.mark.parametrize(
    ("key", "name", "good"),
    [
        ("optimizer", "torch.optim.AdamW", True),
        ("optimizer", "torch.optim.Optimizer", True),
        ("optimizer", "torch.optim.lr_scheduler.StepLR", False),
        ("scheduler", "torch.optim.lr_scheduler.StepLR", True),
        ("model", "torch.nn.Linear", True),
        ("model", "torch.nn.functional.relu", False),
        ("model", "torch.nn.init.normal_", False),
        ("model", "torchvision.models.resnet18", True),
        ("model", "torchvision.models.resnet.ResNet", True),
        ("model", "torchvision.models.get_model", False),
        ("model", "torchvision.models.resnet.conv3x3", False),
        ("model", "explainode.models.weights.load_weights", False),
        ("metric", "torchmetrics.MeanMetric", True),
        ("metric", "torchmetrics.functional.accuracy", False),
        ("callback", "lightning.pytorch.callbacks.EarlyStopping", True),
        ("callback", "lightning.pytorch.loggers.CSVLogger", False),
        ("data", "explainode.data.shapes.ShapesData", True),
        ("data", "explainode.data.base.LightningDataModule", False),
        ("explainer", "explainode.explainers.gradient.Saliency", True),
        ("explainer", "explainode.explainers.base.dataclass", False),
        ("rule", "explainode.relevance.rules.structure.Gate", True),
        ("rule", "explainode.relevance.rules.roots._LinearRegion", False),
        ("noise", "torch.nn.Dropout", False),
    ],
)
def test_users_have_the_classes_of_libraries_in_their_kinds(key, name, good):
    if good:
        check_targets({"_target_": name}, key, slot_named(key))
        assert locate(name, slot_named(key)).__name__ == name.rpartition(".")[2]
    else:
        with pytest.raises(UserError, match="not allowed"):
            check_targets({"_target_": name}, key, slot_named(key))
            locate(name, slot_named(key))


def test_what_hydra_runs_is_set_on_the_command_line_alone(mine, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number, text in enumerate(
        (
            "hydra:\n  callbacks:\n    x: {_target_: mine.nets.write, path: made}\n",
            "hydra:\n  job:\n    env_set: {LD_PRELOAD: x}\n",
            "hydra:\n  job_logging:\n    handlers:\n      x: {(): mine.nets.write, path: made}\n",
            "hydra:\n  launcher: {_target_: mine.nets.write}\n",
            "hydra:\n  run: {dir: elsewhere}\n",
        )
    ):
        (mine / "experiment" / f"evil{number}.yaml").write_text(f"# @package _global_\n# x.\n{text}")
        assert main(["train", "--config-dir", str(mine), f"experiment=evil{number}", "run_dir=out"]) == 2
        assert "a file sets hydra." in capsys.readouterr().err
    assert (
        main(["train", "+hydra.callbacks.x._target_=mine.nets.write", "+hydra.callbacks.x.path=made", "run_dir=out"])
        == 2
    )
    assert "not allowed" in capsys.readouterr().err
    assert not (tmp_path / "made").exists() and not (tmp_path / "out").exists()


# ---- the table of kinds


def test_every_base_is_called_by_its_home():
    """A base is recognized by its name in the class's ancestors: a name that is only an import elsewhere would recognize nothing."""
    for kind in KINDS:
        for name in kind.bases:
            module, _, attribute = name.rpartition(".")
            base = getattr(import_module(module), attribute)
            assert f"{base.__module__}.{base.__qualname__}" == name
        for name in kind.also:
            assert locate(name, slot_named(kind.slots[0])).__name__ == name.rpartition(".")[2]


def test_names_of_earlier_versions_still_resolve():
    for old, new in ALIASES.items():
        assert current_name(old) == new
        with pytest.raises((ImportError, AttributeError)):  # an alias that hid something that exists would be a trap
            getattr(import_module(old.rpartition(".")[0]), old.rpartition(".")[2])
        assert locate(old).__name__ == new.rpartition(".")[2]


def test_a_saved_run_may_use_an_old_name(tmp_path, monkeypatch):
    old = "explainode.models.cifar.six_block"
    monkeypatch.setitem(ALIASES, old, MODEL["_target_"])
    run = write_run(tmp_path / "run", model=MODEL | {"_target_": old})
    network = instantiate(foreign_run(run)["model"], "model")
    assert network.image_size == six_block_resnet(width=8, blocks=2).image_size


# ---- files of a run that somebody sent


def damage(run, kind):
    (checkpoint,) = run.rglob("*.ckpt")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    first = next(name for name, tensor in state.items() if tensor.is_floating_point())
    manifest = checkpoint.parent / "manifest.json"
    if kind == "NaN":
        state[first] = state[first] * float("nan")
    elif kind == "infinite":
        state[first] = state[first] / 0
    elif kind == "int8":
        state[first] = state[first].to(torch.int8)
    elif kind == "complex":
        state[first] = state[first].to(torch.complex64)
    elif kind == "sparse":
        state[first] = state[first].to_sparse()
    elif kind == "meta":
        state[first] = state[first].to("meta")
    elif kind == "a manifest of other types":
        manifest.write_text('{"epoch000.ckpt": {"size": "x", "sha256": 3, "saved": []}}')
    elif kind == "a manifest of a list":
        manifest.write_text('{"epoch000.ckpt": [1]}')
    elif kind == "classes that are no text":
        (run / "classes.txt").write_bytes(b"\xff\xfe\x00caf\xe9\n")
    elif kind == "a bomb in the configuration":
        levels = [f"a{n}: &a{n} [{','.join([f'*a{n - 1}' if n else 'x'] * 10)}]" for n in range(9)]
        (run / "config.yaml").write_text("\n".join([*levels, (run / "config.yaml").read_text()]))
    elif kind == "a configuration of a thousand levels":
        (run / "config.yaml").write_text("model: " + "[" * 900 + "]" * 900)
    elif kind == "a configuration without end":
        (run / "config.yaml").write_text("model: &a {x: *a}")
    elif kind == "a bomb in the checkpoint":
        with (
            zipfile.ZipFile(checkpoint, "a", zipfile.ZIP_DEFLATED) as archive,
            archive.open("archive/data/99", "w", force_zip64=True) as member,
        ):
            for _ in range(64):
                member.write(bytes(1 << 20))
        return
    torch.save({"state_dict": state}, checkpoint)


FILES = (
    "NaN", "infinite", "int8", "complex", "sparse", "meta", "a manifest of other types", "a manifest of a list", "a bomb in the configuration",
    "a configuration of a thousand levels", "a configuration without end", "a bomb in the checkpoint",
)  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", FILES)
def test_what_lies_in_a_run_is_refused_in_a_sentence(kind, verb, tmp_path, monkeypatch, capsys, recwarn):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 20), "teal").save(tmp_path / "picture.png")
    run = write_run(tmp_path / "run")
    damage(run, kind)
    start = time.monotonic()
    assert main(words(verb, run, tmp_path)) == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("explainode: ")]
    assert "fault of ours" not in sentence and len(sentence) < 900
    assert time.monotonic() - start < 20


def test_classes_that_are_no_text_are_refused_in_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 20), "teal").save(tmp_path / "picture.png")
    run = write_run(tmp_path / "run")
    damage(run, "classes that are no text")
    assert main(words("explain", run, tmp_path)) == 2
    assert "classes.txt is damaged" in capsys.readouterr().err


def test_names_do_not_steer_the_terminal(tmp_path, monkeypatch, capsys):
    """Of classes, of pictures, of what the user is told they typed."""
    monkeypatch.chdir(tmp_path)
    picture = tmp_path / "a\x1b]0;owned\x07.png"
    Image.new("RGB", (20, 20), "teal").save(picture)
    (tmp_path / "b\x1b[2J.png").write_bytes(b"no picture")
    run = write_run(tmp_path / "run")
    (run / "classes.txt").write_text("\x1b[31mred\u202e\n" * 8)
    explain = [word for word in words("explain", run, tmp_path) if not word.endswith("picture.png")]
    assert main([*explain, "\x1b[2Jgone.png"]) == 2
    assert main([*explain, str(picture), str(tmp_path / "b\x1b[2J.png")]) == 0
    said = capsys.readouterr()
    assert "owned" in said.out and "red" in said.out and "gone" in said.err
    assert not {"\x1b", "\x07", "\u202e"} & set(said.out + said.err)


def test_too_few_class_names_are_no_fault(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 20), "teal").save(tmp_path / "picture.png")
    run = write_run(tmp_path / "run")
    (run / "classes.txt").write_text("one\n")
    assert main(words("explain", run, tmp_path)) == 0
