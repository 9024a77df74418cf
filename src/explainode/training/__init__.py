"""Lightning modules, and checkpoints that survive what happens to files."""

from explainode.lazy import public

__getattr__, __dir__, __all__ = public(
    __name__,
    {
        "checkpoint": "AtomicCheckpointIO latest_checkpoint",
        "classifier": "Classifier",
        "conditioning": "DepthConditioning",
        "profile": "StepProfiler",
        "surrogate": "Surrogate",
    },
)
