"""Which kind of thing belongs in which slot of a configuration, and where the things of a kind come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """What may stand in a slot.

    Attributes:
        name: in a sentence.
        slots: the keys at which it stands, in any depth.
        bases: one of these classes everything of this kind derives from, by the name of its home, so that asking imports nothing; () where
            nothing but the register says what belongs here.
        homes: packages whose own public subclasses of a base a user may name; a stranger's run may not.
        also: names that are registered without a file in conf/ of their own.
        partial: it is handed over with `_partial_`, to be completed by whoever uses it.
    """

    name: str
    slots: tuple[str, ...]
    bases: tuple[str, ...] = ()
    homes: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    partial: bool = False


MODEL = Kind(
    "model",
    ("model", "models", "variants", "teacher", "network"),
    ("torch.nn.modules.module.Module",),
    ("explainode.models", "explainode.dynamics", "torch.nn", "torchvision.models"),
)
KINDS = (
    MODEL,
    Kind("model's builder", ("convert",), homes=("explainode.models",), partial=True),
    Kind("solver", ("solver",), also=("explainode.dynamics.sde.Milstein", "explainode.dynamics.torch_sde.TorchSDE")),
    Kind("tableau", ("tableau",), ("explainode.dynamics.tableau.Tableau",)),
    Kind("noise", ("noise",), ("explainode.dynamics.noise.Noise",), ("explainode.dynamics",)),
    Kind(
        "diffusion",
        ("diffusion",),
        ("explainode.dynamics.diffusion.Diffusion",),
        ("explainode.dynamics",),
        tuple(f"explainode.dynamics.diffusion.{kind}Diffusion" for kind in ("Multiplicative", "Dropout", "Learned")),
    ),
    Kind(
        "data module",
        ("data", "source"),
        ("lightning.pytorch.core.datamodule.LightningDataModule",),
        ("explainode.data",),
    ),
    Kind("augmentation", ("augment",)),
    Kind("training module", ("module",), ("lightning.pytorch.core.module.LightningModule",), ("explainode.training",)),
    Kind("conditioning", ("conditioning",)),
    Kind("optimizer", ("optimizer",), ("torch.optim.optimizer.Optimizer",), ("torch.optim",), partial=True),
    Kind("scheduler", ("scheduler",), ("torch.optim.lr_scheduler.LRScheduler",), ("torch.optim",), partial=True),
    Kind("trainer", ("trainer",), ("lightning.pytorch.trainer.trainer.Trainer",), ("lightning.pytorch",)),
    Kind(
        "trainer's plugin",
        ("plugins",),
        (
            "lightning.fabric.plugins.io.checkpoint_io.CheckpointIO",
            "lightning.fabric.plugins.precision.precision.Precision",
            "lightning.pytorch.plugins.layer_sync.LayerSync",
            "lightning.fabric.plugins.environments.cluster_environment.ClusterEnvironment",
        ),
        ("explainode.training", "lightning.pytorch.plugins"),
    ),
    Kind(
        "strategy",
        ("strategy",),
        ("lightning.pytorch.strategies.strategy.Strategy",),
        ("lightning.pytorch.strategies",),
    ),
    Kind(
        "profiler",
        ("profiler",),
        ("lightning.pytorch.profilers.profiler.Profiler",),
        ("explainode.training", "lightning.pytorch.profilers"),
    ),
    Kind(
        "callback",
        ("callback", "callbacks"),
        ("lightning.pytorch.callbacks.callback.Callback",),
        ("explainode.callbacks", "lightning.pytorch.callbacks"),
    ),
    Kind("logger", ("logger",), ("lightning.fabric.loggers.logger.Logger",), ("lightning.pytorch.loggers",)),
    Kind(
        "explainer",
        ("explainer", "explainers"),
        ("explainode.explainers.base.Explainer", "captum.attr._utils.attribution.Attribution"),
        ("explainode.explainers", "captum.attr"),
    ),
    Kind(
        "metric",
        ("metric", "metrics"),
        ("explainode.metrics.base.ExplanationMetric", "torchmetrics.metric.Metric"),
        ("explainode.metrics", "torchmetrics"),
    ),
    Kind(
        "attack",
        ("attack",),
        ("explainode.attacks.base.Attack", "explainode.attacks.map_attack.MapAttack"),
        ("explainode.attacks",),
    ),
    Kind("composite", ("composite",), ("explainode.relevance.composite.Composite",), ("explainode.relevance",)),
    Kind("assignment of rules", ("linear", "assignments")),
    Kind("rule", ("rule", "evidence"), ("explainode.relevance.rule.Rule",), ("explainode.relevance.rules",)),
    Kind("inference", ("inference",)),
    Kind("weights", ("twin",)),
    Kind("redrawing", ("redraw",)),
)
# what trains, writes or uploads: never a part of something whose own parts we do not know
DOORS = ("training module", "trainer", "trainer's plugin", "strategy", "profiler", "callback", "logger")
COLLECTIONS = (
    "models", "variants", "explainer", "explainers", "metric", "metrics", "attack", "callback", "logger",
)  # fmt: skip  # entries stand in these under names of their own
_KIND_OF = {slot: kind for kind in KINDS for slot in kind.slots}


@dataclass(frozen=True)
class Slot:
    """A place of a configuration: the kinds that may stand there (none: nothing may), and whether it holds entries under their own names."""

    kinds: tuple[Kind, ...]
    many: bool = False
    key: str = ""


ANYWHERE = Slot(KINDS)
NOWHERE = Slot(())
ANY_PART = Slot(tuple(kind for kind in KINDS if kind.name not in DOORS))


def slot_named(key: str) -> Slot:
    """The slot of a key; `NOWHERE` for one at which the register has nothing."""
    kind = _KIND_OF.get(key)
    return Slot((), key=key) if kind is None else Slot((kind,), key in COLLECTIONS, key)


def inside(node: Any, slot: Slot) -> Iterator[tuple[str, Any, Slot]]:
    """What a node holds: how to write the way to it, the value, and its slot."""
    if isinstance(node, Mapping):
        entries = slot.many and "_target_" not in node
        for key, value in node.items():
            yield f".{key}", value, Slot(slot.kinds) if entries else slot_named(str(key))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield f"[{index}]", value, slot
