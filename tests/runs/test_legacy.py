"""Runs of the first version, whose rows say neither role nor control: they are read, and they can go on."""

from __future__ import annotations

from pathlib import Path

from explainode.metrics.results import Results, Row
from explainode.runs.directory import EARLIER_ROW_COLUMNS, RunDirectory

LINES = [
    "0,test,net,ig,deletion_zero,0.5,0.4,0.6,8,0,0.1,False,deletion[zero]#0a noise=off seed=0",
    "0,test,net,random_map,cost,2.0,2.0,2.0,8,0,0.1,False,cost[]#0b noise=off seed=0",
    "0,test,net,,accuracy,0.9,0.8,1.0,8,0,0.0,True,accuracy[top1]",
]


def first_version(folder: Path) -> RunDirectory:
    (folder / "metrics.csv").write_text("\n".join([",".join(EARLIER_ROW_COLUMNS), *LINES, ""]))
    return RunDirectory(folder)


def test_roles_and_controls_are_filled_in(tmp_path: Path) -> None:
    rows = first_version(tmp_path).read_rows()
    assert [(row.role, row.control) for row in rows] == [
        ("faithfulness", ""),
        ("cost", "random"),
        ("performance", ""),
    ]


def test_a_run_of_the_first_version_goes_on(tmp_path: Path) -> None:
    run = first_version(tmp_path)
    before = run.read_rows()
    more = Row(1, "test", "net", "mine", "x", 0.5, 0.4, 0.6, 8, 0, 0.1, True, "x", role="agreement", control="edges")
    run.write_results(Results(rows=[more]))
    assert run.read_rows() == [*before, more]
