"""ExplainIt!: a page, and an HTTP interface, that show which network and which explanation to trust (Jha et al. 2022)."""

from explainode.lazy import public

__getattr__, __dir__, __all__ = public(__name__, {"app": "make_app", "desk": "Desk Limits"})
