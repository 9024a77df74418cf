"""Run directories: their files, several of them as one set of results, and the points of a sweep."""

from explainode.lazy import public

__getattr__, __dir__, __all__ = public(
    __name__,
    {
        "directory": "RunDirectory run_config",
        "merge": "Source match_accuracy merge_runs name_runs",
        "sweep": "Sweep is_sweep read_sweep",
    },
)
