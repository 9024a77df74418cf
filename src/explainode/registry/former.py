"""Former names of entries: still understood on command lines and in configurations, with a line that says what they are called now."""

from __future__ import annotations

import re
import sys

FORMER = {
    "experiment": {
        "paper000_table1": "lei2023_table1",
        "paper000_table2": "lei2023_table2",
        "paper000_table3": "lei2023_table3",
        "paper001_ode_sde": "jha2021_ode_sde",
        "paper001_tables": "jha2021_tables",
        "paper002_fig3": "root_inference_fig3",
        "paper002_fig6": "root_inference_fig6",
        "paper002_table1": "root_inference_table1",
        "paper002_table2": "root_inference_table2",
        "paper002_table3": "root_inference_table3",
        "paper002_table4": "root_inference_table4",
        "paper002_table6": "root_inference_table6",
        "paper004_gallery": "ayyar2021_gallery",
    },
    "metric": {
        "max_sensitivity_paper001": "max_sensitivity_jha2021",
        "segmentation_agreement_paper002": "segmentation_agreement_root_inference",
    },
    "module": {"classifier_paper001": "classifier_jha2021"},
}
_said: set[str] = set()


def current(group: str, name: str) -> str:
    """The name of today; a former one is said once, on stderr."""
    new = FORMER.get(group, {}).get(name, name)
    if new != name and name not in _said:
        _said.add(name)
        print(f"{group}={name} is called {new} now", file=sys.stderr)
    return new


def current_override(override: str) -> str:
    """An override in the names of today: `experiment=OLD`, `metric=[OLD,gini]`, sweeps `metric=OLD,gini`, keys `metric.OLD.draws=3`.

    Example:
        >>> current_override("experiment=jha2021_tables")
        'experiment=jha2021_tables'
    """
    key, equals, value = override.partition("=")
    parts = key.lstrip("+~").split("@")[0].split(".")
    group = parts[0].lstrip("/")
    if group not in FORMER:
        return override
    if len(parts) > 1:
        name = current(group, parts[1])
        return key.replace(f".{parts[1]}", f".{name}", 1) + equals + value
    return key + equals + re.sub(r"[\w-]+", lambda found: current(group, found[0]), value)
