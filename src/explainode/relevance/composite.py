"""Which rule where: an ordered list, as data from `conf/composite/`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from explainode.errors import UserError, nearest
from explainode.relevance.operations import TABLE, Affine, Operation
from explainode.relevance.rule import KINDS, Rule
from explainode.relevance.tape import Tape
from explainode.relevance.walk import affine_in_pixels

POSITIONS = ("first", "last")
SEEDS = ("logit", "one", "contrastive", "softmax")


@dataclass(frozen=True)
class Assignment:
    """A rule and the operations that get it; every condition that is given must hold.

    Args:
        rule: for the kinds of operation that it knows.
        kind: only this kind; op: only torch's operation of this name (`convolution`).
        module: only operations whose module's name matches this pattern (`layer4.*`).
        position: `first`: linear operations that see the pixels, through nothing but scales, offsets, means, sums and rearrangements, and these scales;
            `last`: the linear operation that makes the logits.
        depth: (low, high): linear operations by their share of the way from the pixels (0) to the logits (1), low <= depth < high.

    Raises:
        UserError: if a kind or position is unknown, the rule does not know the kind, or the depth is no interval in [0, 1].
    """

    rule: Rule
    kind: str | None = None
    op: str | None = None
    module: str | None = None
    position: str | None = None
    depth: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in KINDS:
            raise UserError(f"no kind of operation named {self.kind!r}; the nearest are {nearest(self.kind, KINDS)}")
        if self.op is not None and self.op not in TABLE:
            raise UserError(f"no operation named {self.op!r}; the nearest are {nearest(self.op, TABLE)}")
        if self.kind is not None and self.kind not in self.rule.kinds:
            raise UserError(
                f"{type(self.rule).__name__} has no rule for operations of kind {self.kind!r}, only for {', '.join(self.rule.kinds)}"
            )
        if self.position is not None and self.position not in POSITIONS:
            raise UserError(f"position must be one of {', '.join(POSITIONS)}, got {self.position!r}")
        if self.depth is not None and not (len(self.depth) == 2 and 0 <= self.depth[0] < self.depth[1] <= 1):
            raise UserError(f"depth must be an interval [low, high] in [0, 1], got {list(self.depth)}")

    def matches(self, operation: Operation, place: Place) -> bool:
        if operation.kind not in ((self.kind,) if self.kind else self.rule.kinds):
            return False
        if self.op is not None and operation.name != self.op:
            return False
        if self.module is not None and not fnmatchcase(operation.module, self.module):
            return False
        if self.position is not None and id(operation) not in (place.first if self.position == "first" else place.last):
            return False
        if self.depth is not None:
            depth = place.depth.get(id(operation))
            low, high = self.depth
            return depth is not None and (low <= depth < high or depth == high == 1)
        return True


@dataclass(frozen=True)
class Place:
    """Where the operations of a tape stand: those that see the pixels, with the scales and offsets before them, those that make the logits, and
    the depth of each linear one in [0, 1]."""

    first: frozenset[int]
    last: frozenset[int]
    depth: dict[int, float]

    @classmethod
    def of(cls, tape: Tape) -> Place:
        linear = [operation for operation in tape.operations if operation.kind == "linear"]
        pixels = affine_in_pixels(tape)
        first = {
            id(operation)
            for operation in tape.operations
            if (isinstance(operation, Affine) or operation.kind == "linear") and id(operation.inputs[0]) in pixels
        }
        last = tape.output.producer
        while last is not None and last.kind in ("rearrangement", "affine"):
            last = last.inputs[0].producer
        steps = max(1, len(linear) - 1)
        return cls(
            frozenset(first),
            frozenset() if last is None else frozenset({id(last)}),
            {id(operation): number / steps for number, operation in enumerate(linear)},
        )


@dataclass(frozen=True)
class Composite:
    """Rules in order of precedence: the first assignment that matches an operation decides.

    Args:
        assignments: the first that matches counts.
        seed: what the walk begins with: `logit`: the class's logit; `one`: 1 (methods that are gradients); `contrastive`: the logit, and the same
            amount taken from the other classes evenly (Gu et al. 2018); `softmax`: the gradient of the class's probability (Iwana et al. 2019).

    Raises:
        UserError: for another seed.
    """

    assignments: Sequence[Assignment]
    seed: str = "logit"

    def __post_init__(self) -> None:
        if self.seed not in SEEDS:
            raise UserError(
                f"seed must be one of {', '.join(SEEDS)}, got {self.seed!r}; the nearest are {nearest(self.seed, SEEDS)}"
            )
        object.__setattr__(self, "assignments", tuple(self.assignments))

    def assign(self, tape: Tape) -> Callable[[Operation], Rule]:
        """The rule of each operation on a tape.

        The function raises a UserError for an operation that no assignment matches.

        Raises:
            UserError: if an assignment names a module and matches no operation: the name is most likely misspelled.
        """
        place = Place.of(tape)
        for assignment in self.assignments:
            if assignment.module is not None and not any(
                assignment.matches(operation, place) for operation in tape.operations
            ):
                raise _matches_nothing(assignment, assignment.module, tape)
        linear = {id(operation) for operation in tape.operations if operation.kind == "linear"}
        if not place.first & linear and any(assignment.position == "first" for assignment in self.assignments):
            warnings.warn(
                "no linear layer of this network sees the pixels, so the composite's rule for the first layer is used nowhere; the layers behind "
                "get the rules for all others",
                stacklevel=2,
            )

        def choose(operation: Operation) -> Rule:
            for assignment in self.assignments:
                if assignment.matches(operation, place):
                    return assignment.rule
            raise UserError(
                f"the composite has no rule for {operation} of kind {operation.kind!r}; add an assignment for this kind"
            )

        return choose


def _matches_nothing(assignment: Assignment, module: str, tape: Tape) -> UserError:
    """What to tell about an assignment to modules that do nothing of the kind, or are not there."""
    rule = type(assignment.rule).__name__
    found = {operation.name: operation.kind for operation in tape.operations if fnmatchcase(operation.module, module)}
    if found:
        there = ", ".join(f"{name} ({kind})" for name, kind in sorted(found.items()))
        return UserError(
            f"{rule} for module {module!r} matches no operation, of those in it ({there}); mend the assignment's other conditions"
        )
    paths = [operation.module.split(".") for operation in tape.operations if operation.module]
    known = {".".join(path[:depth]) for path in paths for depth in range(1, len(path) + 1)}
    near = nearest(module.rstrip("*").rstrip("."), known)
    return UserError(
        f"{rule} for module {module!r} matches no operation of this network; the nearest modules are {near}"
    )
