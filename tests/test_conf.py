"""conf/ is the register: every entry says what it is, names an allowed target with all its parameters, composes and instantiates."""

import inspect
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from explainode import registry
from explainode.errors import UserError
from explainode.jobs.train import variants
from explainode.registry import composing

CONF = Path(__file__).parents[1] / "conf"
ENTRIES = [(group, name) for group in registry.GROUPS for name in registry.names(group)]
NEEDS_A_RUN = {("callback", "explanations"), ("callback", "checkpoint"), ("logger", "csv"), ("logger", "wandb")}
HEAVY = {
    "tv_resnet101",
    "tv_wide_resnet101_2",
    "tv_resnext101_32x8d",
    "vgg16",
    "vgg16_bn",
    "vgg19_bn",
    "vit_b_16",
}  # > 40 M parameters


def test_the_package_holds_the_tree():
    assert {path.name for path in registry.conf_folder().iterdir()} >= {
        "train.yaml",
        "evaluate.yaml",
        "explain.yaml",
        *registry.GROUPS,
    }


@pytest.mark.parametrize(("group", "name"), ENTRIES, ids="/".join)
def test_entry_is_described(group, name):
    entry = next(entry for entry in registry.describe(group) if entry.name == name)
    assert entry.summary.endswith("."), f"conf/{group}/{name}.yaml needs a line '# Summary. | Source'"
    text = (CONF / group / f"{name}.yaml").read_text(encoding="utf-8")
    package = {"experiment": "_global_"}.get(group, f"{group}.{name}" if group in registry.MANY_OF else None)
    assert (text.splitlines()[0] == f"# @package {package}") is (package is not None)


@pytest.mark.parametrize(("group", "name"), [e for e in ENTRIES if e[0] != "experiment"], ids="/".join)
def test_entry_writes_out_every_parameter(group, name):
    config = OmegaConf.to_container(registry.load(f"{group}/{name}"), resolve=False)
    registry.check_targets(config)
    target = registry.locate(config["_target_"])
    if config["_target_"].startswith("lightning.") or config.get("_partial_"):
        return  # a library's own signature: what is not set is the library's default
    given = {key for key in config if not key.startswith("_")}
    parameters = inspect.signature(target).parameters
    filled_by_us = {"network"} if group == "module" else set()
    wanted = {n for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)} - filled_by_us
    assert given >= wanted, f"not in the yaml: {sorted(wanted - given)}"


@pytest.mark.parametrize(
    ("group", "name"), [e for e in ENTRIES if e[0] in ("explainer", "metric", "attack", "data")], ids="/".join
)
def test_entry_instantiates(group, name, tmp_path):
    if (group, name) == ("data", "cifar10"):
        with pytest.raises(UserError, match="download"):
            registry.get("data/cifar10", root=str(tmp_path)).dataset("test")
    elif (group, name) == ("data", "image_folder"):
        with pytest.raises(UserError):
            registry.get("data/image_folder", root=str(tmp_path / "missing")).dataset("test")
    else:
        assert registry.get(f"{group}/{name}") is not None


@pytest.mark.parametrize("name", [n for n in registry.names("model") if n not in HEAVY])
def test_model_meets_its_contract(name):
    if name == "timm":
        pytest.importorskip("timm", reason="timm is an optional package")
    network = registry.get(f"model/{name}").eval()
    with torch.no_grad():
        size = network.image_size
        logits = network(torch.rand(2, 3, size, size))
    assert logits.shape[0] == 2 and logits.dim() == 2
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", registry.names("experiment"))
def test_experiment_composes(name):
    config = composing.compose("train", [f"experiment={name}"])
    assert config.name != "train"
    assert not config.variants or [v.variant for v in variants(config)] == list(config.variants)
    for group in ("explainer", "metric"):
        registry.check_parameters(OmegaConf.to_container(config[group], resolve=True))


@pytest.mark.parametrize("name", ["train", "evaluate", "explain", "benchmark"])
def test_top_level_composes(name):
    config = composing.compose(name, [])
    assert config.explainer


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["modle=resnet20"], ["modle"]),
        (["model=resnet21"], ["resnet20"]),
        (["model.nois.magnitude=0.1"], ["model.noise"]),
        (["explainer=[salienci]"], ["saliency"]),
        (["metric=[deletoin]"], ["deletion"]),
        (["trainer.max_epoch=3"], ["trainer.max_epochs"]),
        (["explainer.occlusion.window=3"], ["occlusion", "not chosen"]),
        (["evaluation.image=3"], ["evaluation.images"]),
        (["experiment=cifar10_comparee"], ["cifar10_compare"]),
        (["data=cifar"], ["cifar10"]),
        (["lr 0.1"], ["key=value"]),
        (["data.batch_siz=3"], ["data.batch_size"]),
        (["seeed=3"], ["seed"]),
        (["logger=[wandbb]"], ["wandb"]),
        (["module=clasifier"], ["classifier"]),
        (["callback=[checkpont]"], ["checkpoint"]),
        (["module.optimizer.lrr=1"], ["module.optimizer.lr"]),
        (["model.noise.magnitud=1"], ["model.noise.magnitude"]),
        (["nam=x"], ["name"]),
        (["trainer=cpuu"], ["cpu"]),
        (["explainer.saliency=null"], ["~explainer.saliency"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_typo_is_answered_with_the_nearest_names(overrides, words):
    with pytest.raises(UserError) as caught:
        composing.compose("train", overrides)
    sentence = str(caught.value)
    assert all(word in sentence for word in words), sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("path", "override", "words"),
    [
        ("data/shapes", {"batch_size": "abc"}, ["batch_size", "int", "str"]),
        ("explainer/ig", {"steps": 2.5}, ["steps", "int", "float"]),
        ("explainer/smoothgrad", {"samples": True}, ["samples", "bool"]),
        ("model/resnet20", {"depth": "twenty"}, ["depth", "int"]),
    ],
)
def test_a_wrong_type_is_refused(path, override, words):
    with pytest.raises(UserError) as caught:
        registry.get(path, **override)
    assert all(word in str(caught.value) for word in words), str(caught.value)


HOSTILE = [
    "os.system",
    "builtins.eval",
    "builtins.exec",
    "builtins.open",
    "subprocess.run",
    "subprocess.Popen",
    "shutil.rmtree",
    "pathlib.Path.unlink",
    "torch.load",
    "torch.utils.cpp_extension.load_inline",
    "torch.hub.load",
    "logging.os.system",
    "urllib.request.urlopen",
    "pickle.loads",
    "importlib.import_module",
    "timeit.timeit",
    "ctypes.CDLL",
    "socket.socket",
    "explainode",
    "explainodeevil.run",
]


@pytest.mark.parametrize("target", HOSTILE)
def test_a_target_outside_the_allowed_packages_is_refused(target):
    with pytest.raises(UserError, match="not allowed"):
        registry.instantiate({"nested": [{"_target_": target, "_partial_": True}]})


def test_allowed_targets_do_not_reach_through_to_other_modules():
    with pytest.raises(UserError, match="not allowed"):
        registry.instantiate({"_target_": "explainode.evaluation.torch.load", "_partial_": True})


def test_users_may_allow_their_own_package(monkeypatch):
    monkeypatch.setattr("explainode.registry.targets._extra_targets", [])
    registry.allow_targets(["collections"])
    assert registry.instantiate({"_target_": "collections.Counter"}) == {}


@pytest.mark.parametrize("name", registry.names("module"))
def test_a_sweep_over_the_learning_rate_reaches_the_schedule(name):
    """OneCycleLR ignores the optimizer's rate: a sweep over it used to train the same network at each point."""
    module = composing.compose("train", [f"module={name}", "module.optimizer.lr=0.0125"]).module
    scheduler = module.get("scheduler") or {}
    assert scheduler.get("max_lr", 0.0125) == 0.0125
