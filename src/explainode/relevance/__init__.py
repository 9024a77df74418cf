"""Relevance: a tape of a network's operations, and rules that send a score back along it."""

from explainode.lazy import public

__getattr__, __dir__, __all__ = public(
    __name__,
    {
        "composite": "Assignment Composite",
        "composites": "backpropagation lrp",
        "rule": "Rule",
        "tape": "Tape record",
        "walk": "Walk seed",
    },
)
