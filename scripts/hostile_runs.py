"""Makes runs that a stranger might send, one for every public or private name below the packages that configurations know, in each slot of a
configuration, and finds those that run or write anything.

    python scripts/hostile_runs.py --names 400            # so many names, drawn at random, in each slot through the door that all verbs share
    python scripts/hostile_runs.py --names 400 --verbs    # through explain, evaluate and benchmark themselves; for the night
    python scripts/hostile_runs.py                        # all names
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import random
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from explainode.cli.main import main as explainode
from explainode.errors import UserError
from explainode.models.resnet import six_block_resnet
from explainode.registry.foreign import foreign_run
from explainode.registry.kinds import slot_named
from explainode.registry.targets import registered

PACKAGES = (
    "explainode", "torch.nn", "torch.optim", "torchvision.models", "torchvision.transforms", "torchmetrics", "lightning.pytorch", "captum.attr",
)  # fmt: skip
OTHERS = (
    "os.system",
    "subprocess.run",
    "builtins.eval",
    "builtins.exec",
    "pickle.loads",
    "torch.load",
    "torch.hub.load",
    "shutil.rmtree",
)
MODEL = {"_target_": "explainode.models.resnet.six_block_resnet", "width": 8, "blocks": 2, "num_classes": 8}
DATA = {
    "_target_": "explainode.data.shapes.ShapesData",
    "train_size": 4,
    "val_size": 4,
    "test_size": 4,
    "size": 16,
    "num_classes": 8,
}
SLOTS = {
    "model": lambda node: {"model": node},
    "noise": lambda node: {"model": MODEL | {"noise": node}},
    "mean": lambda node: {"model": MODEL | {"mean": [node]}},
    "teacher": lambda node: {"model": {"_target_": "explainode.models.neural_ode.neural_ode", "teacher": node}},
    "solver": lambda node: {"model": {"_target_": "explainode.models.neural_ode.neural_ode", "teacher": MODEL, "solver": node}},
    "variants": lambda node: {"variants": {"net": node}},
    "data": lambda node: {"data": node},
    "augment": lambda node: {"data": DATA | {"augment": node}},
    "source": lambda node: {"data": {"_target_": "explainode.data.random_labels.RandomLabelsData", "source": node}},
}  # fmt: skip
FILES = (
    "path",
    "checkpoint_path",
    "config_yaml",
    "save_dir",
    "root_dir",
    "dirpath",
    "filename",
    "run_directory",
    "f",
    "root",
)


def names() -> Iterator[str]:
    """Every callable that can be reached as module.name below the packages, and some below others."""
    seen = set(OTHERS)
    yield from OTHERS
    for package in PACKAGES:
        root = importlib.import_module(package)
        modules = [root.__name__]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            modules += [
                found.name
                for found in pkgutil.walk_packages(root.__path__, f"{root.__name__}.", onerror=lambda _: None)
            ]
            for module in modules:
                if module.endswith("__main__") or ".conf" in module:
                    continue
                with suppress(Exception):  # optional packages that are not here
                    content = vars(importlib.import_module(module))
                    for name, value in sorted(content.items()):
                        if callable(value) and not name.startswith("__") and f"{module}.{name}" not in seen:
                            seen.add(f"{module}.{name}")
                            yield f"{module}.{name}"


def node(name: str, place: Path) -> dict[str, Any]:
    """A node that names it, with a place in every parameter that might be a file."""
    with suppress(Exception):
        module, _, attribute = name.rpartition(".")
        known = inspect.signature(getattr(sys.modules[module], attribute)).parameters
        return {"_target_": name} | {key: str(place / "made") for key in FILES if key in known}
    return {"_target_": name}


def write_run(folder: Path, settings: dict[str, Any]) -> Path:
    """A run directory with a checkpoint that fits its honest model."""
    checkpoint = folder / "checkpoints" / "net" / "epoch000.ckpt"
    if not checkpoint.is_file():
        checkpoint.parent.mkdir(parents=True)
        torch.save({"state_dict": six_block_resnet(width=8, blocks=2, num_classes=8).state_dict()}, checkpoint)
        Image.new("RGB", (16, 16), "teal").save(folder.parent / "picture.png")
    config = {"model": MODEL, "data": DATA, "variant": "net", "variants": {}, "image_size": 16} | settings
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


class Watch:
    """Notes what the interpreter does while it is on: files opened for writing outside of `allowed`, programs, sockets, deletions."""

    ACTS = (
        "os.system",
        "subprocess.Popen",
        "os.exec",
        "os.posix_spawn",
        "socket.connect",
        "shutil.rmtree",
        "os.remove",
        "os.rename",
        "os.mkdir",
    )

    def __init__(self, allowed: Path) -> None:
        self.allowed, self.on, self.seen = allowed, False, list[str]()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if (
            event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        ) or event in self.ACTS:
            self._note(event, arguments[0])

    def _note(self, event: str, where: Any) -> None:
        inside = isinstance(where, str) and (where == "/dev/null" or Path(where).resolve().is_relative_to(self.allowed))
        if not inside and not str(where).endswith(".pyc"):
            self.seen.append(f"{event}({where})")

    @contextmanager
    def listening(self) -> Iterator[list[str]]:
        """Context: what is noted inside."""
        self.seen = []
        self.on = True
        try:
            yield self.seen
        finally:
            self.on = False


def through_the_door(found: list[str], folder: Path, watch: Watch) -> list[str]:
    """Names in slots that are neither refused nor registered there, or that did something on the way."""
    faults = []
    run = write_run(folder / "run", {})
    for name in found:
        for slot, make in SLOTS.items():
            write_run(run, make(node(name, folder)))
            known = {other for kind in slot_named(slot).kinds for other in registered(kind)}
            with watch.listening() as acts:
                try:
                    foreign_run(run)
                    refused = False
                except UserError:
                    refused = True
            if acts or refused == (name in known):
                faults.append(f"{slot}: {name} {'refused' if refused else 'accepted'} {acts}")
    return faults


def through_the_verbs(found: list[str], folder: Path, watch: Watch) -> list[str]:
    """Names in slots with which a verb did something outside of its output, or ended otherwise than well or with a sentence."""
    faults = []
    run = write_run(folder / "run", {})
    small = ["evaluation.images=2", "metric=[smoothness]", "explainer=[saliency]", f"run_dir={folder / 'out'}"]
    verbs = (
        ["explain", str(folder / "picture.png"), "-m", "saliency", "--run", str(run), "-o", str(folder / "out")],
        ["evaluate", f"run={run}", *small],
        ["benchmark", f"runs=[{run}]", *small],
    )
    for name in found:
        for slot, make in SLOTS.items():
            write_run(run, make(node(name, folder)))
            for words in verbs:
                said = StringIO()
                with watch.listening() as acts, redirect_stdout(said), redirect_stderr(said):
                    status = explainode(words)
                if acts or status not in (0, 2) or (folder / "made").exists():
                    faults.append(f"{words[0]}, {slot}: {name} ends with {status} {acts} {said.getvalue()[-300:]}")
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, help="so many, drawn at random; all by default")
    parser.add_argument("--verbs", action="store_true", help="through the verbs themselves")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = list(names())
    if options.names is not None:
        found = random.Random(options.seed).sample(found, min(options.names, len(found)))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        faults = (through_the_verbs if options.verbs else through_the_door)(found, folder, Watch(folder))
    print(*faults, sep="\n")
    print(f"{len(found)} names in {len(SLOTS)} slots: {len(faults)} that run or write")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
