"""`explainode list [group]`: what can be chosen, one line and source each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from explainode.errors import UserError
from explainode.registry.entries import GROUPS, describe, names

HELP = """explainode list [GROUP] [--json]

Without a group: the groups and how many entries each has. With one (model, data, explainer, metric, experiment, ...): its entries,
what each is in a line, and where it comes from."""


def run(arguments: Sequence[str]) -> int:
    """Print the register; nothing is imported for it."""
    from rich.console import Console
    from rich.table import Table

    if "-h" in arguments or "--help" in arguments:
        print(HELP)
        return 0
    groups = [word for word in arguments if word != "--json"]
    if len(groups) > 1:
        raise UserError(f"explainode list takes one group, got {len(groups)}; groups are {', '.join(GROUPS)}")
    as_json = "--json" in arguments
    if not groups:
        counts = {group: names(group) for group in GROUPS}
        if as_json:
            print(json.dumps(counts, indent=1))
            return 0
        table = Table(box=None, pad_edge=False)
        for column in ("group", "entries", "for example"):
            table.add_column(column)
        for group, entries in counts.items():
            table.add_row(group, str(len(entries)), ", ".join(entries[:6]) + (" ..." if len(entries) > 6 else ""))
        Console().print(table)
        return 0
    entries_of = list(describe(groups[0]))
    if as_json:
        print(json.dumps([asdict(entry) for entry in entries_of], indent=1))
        return 0
    table = Table(box=None, pad_edge=False)
    table.add_column(groups[0], style="bold", no_wrap=True)
    table.add_column("what it is")
    table.add_column("source", style="dim")
    for entry in entries_of:
        table.add_row(entry.name, entry.summary, entry.source)
    Console().print(table)
    return 0
