"""Train networks whose explanations can be trusted, and prove it.

The names below are imported when first used, so that `import explainode` costs next to nothing; so are those of each room, such as
`explainode.dynamics.RungeKutta`. What stands in a room's `__all__` is public: it stays where it is, whatever file it moves to.
"""

from explainode.lazy import public

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = public(
    __name__,
    {
        "annotations": "Annotations",
        "attribution": "Explanation",
        "errors": "UserError",
        "explainers.targets": "Unit",
        "evaluation": "Evaluation evaluate",
        "asking": "explain",
        "explaining": "Conditions explain_many",
        "randomness": "noise_scope",
        "registry.build": "get",
    },
)
