"""How a solver fails: typed, with the time, the step and the evaluations, so that callers can react and users know where to look."""

from __future__ import annotations

from explainode.errors import UserError


class SolverError(UserError):
    """A differential equation that could not be solved.

    Attributes:
        t: where the solver stood.
        dt: the step that it tried.
        evaluations: of the field so far.
        block: the name of the block whose field it was, set by whoever knows it; the message then says it.
    """

    what = "the solver failed"
    advice = "take more steps"

    def __init__(self, t: float, dt: float, evaluations: int, block: str | None = None) -> None:
        super().__init__(t, dt, evaluations, block)
        self.t, self.dt, self.evaluations, self.block = t, dt, evaluations, block

    def __str__(self) -> str:
        where = "" if self.block is None else f" in block {self.block!r}"
        return f"{self.what}{where} at t={self.t:.6g} (step {self.dt:.3g}, {self.evaluations} evaluations of the field); {self.advice}"


class NonFiniteState(SolverError):
    """The field or the state holds NaN or infinity."""

    what = "the state or its field is not finite"
    advice = "take more steps, or look for the parameter or input that is not finite or too large"


class StepUnderflow(SolverError):
    """The step that the tolerance asks for is too small for the time's precision: the field is stiff, not smooth, or blows up."""

    what = "the step became too small for the tolerance"
    advice = "loosen rtol and atol, choose a fixed number of steps or fallback_steps, or use a smoother field"


class TooManySteps(SolverError):
    """`max_steps` was reached before t1."""

    what = "max_steps was reached"
    advice = "raise max_steps, loosen rtol and atol, or choose a fixed number of steps or fallback_steps"
