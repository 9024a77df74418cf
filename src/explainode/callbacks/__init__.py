"""What happens beside the training step: explanations, checkpoints of random state, interruption, progress, loggers."""

from explainode.lazy import public

__getattr__, __dir__, __all__ = public(
    __name__,
    {
        "explanations": "ExplanationCallback",
        "finite": "Finite",
        "interrupt": "Interrupt",
        "leave": "Leave SafePoints",
        "loggers": "wandb_logger",
        "progress": "Progress",
        "random_state": "RandomState",
        "readable": "Readable",
        "requeue": "Requeue",
    },
)
