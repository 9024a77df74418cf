"""What people look at: colors, panels, curves, verdicts, tables and the self-contained report."""

from explainode.lazy import public

__getattr__, __dir__, __all__ = public(
    __name__,
    {
        "board": "Board make_board",
        "comparisons": "Comparison compare_controls compare_models",
        "exports": "results_to_latex write_exports",
        "html": "write_report",
        "markup": "Markup join tag",
        "panels": "panel",
        "sections": "Found Section",
        "tables": "print_results results_to_json results_to_markdown",
        "verdict": "Verdict judge",
    },
)
