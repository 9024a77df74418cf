"""What can be chosen: a table per group of conf/, from the first line of each yaml."""

from __future__ import annotations

from _pages.text import cell
from explainode.registry.entries import GROUPS, describe

WHAT = {
    "model": "Networks.",
    "solver": "Solvers of the equations inside networks.",
    "data": "Data sets.",
    "module": "What is trained, and by which loss.",
    "trainer": "Where and how long training runs.",
    "composite": "Which relevance rule goes where.",
    "explainer": "Explanation methods; some are controls that a real explanation has to beat.",
    "metric": "What judges an explanation.",
    "attack": "Searches for pixels near a picture at which the network, or the map, changes.",
    "callback": "What happens while a network is trained.",
    "logger": "Where numbers go.",
    "experiment": "Settings that reproduce or study something.",
}


def register_pages() -> dict[str, str]:
    """One page per group, and the index of them."""
    pages, rows = {}, []
    for group in GROUPS:
        entries = list(describe(group))
        table = ["| name | what it is | source |", "|---|---|---|"]
        table += [f"| `{entry.name}` | {cell(entry.summary)} | {cell(entry.source)} |" for entry in entries]
        use = (
            f"explainode explain picture.jpg -m {entries[0].name}"
            if group == "explainer"
            else f"explainode train {group}={entries[0].name}"
        )
        pages[f"{group}.md"] = (
            f"# {group}: {len(entries)} entries\n\n{WHAT.get(group, '')} Chosen by name (`{use}`), changed by key; each is a file of `conf/{group}/`.\n\n"
            + "\n".join(table)
            + "\n"
        )
        rows.append(f"- [{group}]({group}.md): {WHAT.get(group, '')} {len(entries)} entries")
    pages["index.md"] = (
        "# The register\n\nEverything that has a name in a configuration. `explainode list GROUP` prints the same.\n\n"
        + "\n".join(rows)
        + "\n\n```{toctree}\n:hidden:\n\n"
        + "\n".join(GROUPS)
        + "\n```\n"
    )
    return pages
