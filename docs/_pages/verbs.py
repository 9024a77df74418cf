"""The verbs, as `--help` shows them."""

from __future__ import annotations

import contextlib
import io

from explainode.cli.main import VERBS, run


def verb_page() -> str:
    """`explainode VERB --help` of every verb."""
    parts = ["# Verbs", "", "`explainode VERB --help` prints these texts.", ""]
    for verb, what in VERBS.items():
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            run([verb, "--help"])
        parts += [f"## {verb}", "", f"{what[0].upper()}{what[1:]}.", "", "```text", out.getvalue().rstrip(), "```", ""]
    return "\n".join(parts)
