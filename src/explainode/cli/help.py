"""`explainode VERB --help` for verbs with settings: what can be set, read from the verb's own yaml."""

from __future__ import annotations

from collections.abc import Sequence

from explainode.registry.entries import GROUPS, conf_folder, names


def verb_help(verb: str, examples: Sequence[str], flags: Sequence[str] = ()) -> str:
    """The summary, the groups with their defaults, the settings with their comments, and examples that can be typed."""
    lines = (conf_folder() / f"{verb}.yaml").read_text(encoding="utf-8").splitlines()
    summary = lines[0].lstrip("# ")
    groups, settings = [], []
    in_defaults = False
    for line in lines[1:]:
        if line.startswith("hydra:"):
            break
        if line.startswith("defaults:"):
            in_defaults = True
        elif in_defaults and line.startswith("  - "):
            group, _, default = line.removeprefix("  - ").partition(":")
            if group in GROUPS:
                groups.append(f"  {group:<11} {default.strip()}   ({len(names(group))} choices)")
        else:
            in_defaults = False
            if line:
                settings.append(f"  {line}")
    parts = [
        f"explainode {verb}: {summary}",
        "",
        "choose one or [several] (explainode list GROUP shows all):",
        *groups,
        "",
        "settings:",
        *settings,
    ]
    if flags:
        parts += ["", "options:", *(f"  {flag}" for flag in flags)]
    return "\n".join([*parts, "", "examples:", *(f"  {example}" for example in examples)])
