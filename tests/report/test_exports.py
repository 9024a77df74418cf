"""Tables for papers are valid, complete and say the same numbers as metrics.csv."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.mathtext import MathTextParser

from explainode.errors import UserError
from explainode.metrics.results import Results
from explainode.report.comparisons import final_rows
from explainode.report.exports import latex, results_to_latex, write_exports
from explainode.runs.directory import RunDirectory, final
from explainode.wording import plus_minus

Build = Callable[..., Results]
REAL = {"saliency", "ig", "smoothgrad", "gradcam"}
NASTY = r"a_b 50% {x} \foo #1 $y$ ~^ <&>|"


@pytest.fixture(scope="module")
def results(make_results: Build) -> Results:
    results = make_results(images=1, side=16, n=24, epochs=2)
    results.maps = []
    return results


def balanced(text: str) -> bool:
    """Whether braces, math and environments close, read as LaTeX reads them: a backslash takes the next character with it."""
    depth, math_on, open_environments = 0, False, []
    for token in re.findall(r"\\begin\{\w+\}|\\end\{\w+\}|\\.|[{}$%\n]|[^\\{}$%\n]+", text):
        if name := re.fullmatch(r"\\(begin|end)\{(\w+)\}", token):
            if name[1] == "begin":
                open_environments.append(name[2])
            elif not open_environments or open_environments.pop() != name[2]:
                return False
        elif token in "{}":
            depth += 1 if token == "{" else -1
        elif token == "$":
            math_on = not math_on
        if depth < 0:
            return False
    return depth == 0 and not math_on and not open_environments


def without_comments(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("%"))


def test_latex_is_balanced_and_its_mathematics_can_be_set(results: Results) -> None:
    text = without_comments(results_to_latex(results))
    assert balanced(text)
    assert not balanced(text.replace(r"\end{tabular}", "", 1)) and not balanced(text.replace("}", "", 1))
    parser = MathTextParser("path")
    for formula in set(re.findall(r"\$[^$]*\$", text)):
        parser.parse(formula)
    for table in re.findall(r"\\toprule(.*?)\\bottomrule", text, flags=re.S):
        widths = {line.count(" & ") for line in table.splitlines() if "&" in line}
        assert len(widths) == 1, "every line has the same cells"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX is installed")
def test_latex_compiles(results: Results, tmp_path: Path) -> None:
    body = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}\n{results_to_latex(results)}\\end{{document}}\n"
    (tmp_path / "t.tex").write_text(body)
    subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )


def test_every_number_stands_in_its_place(results: Results) -> None:
    text = results_to_latex(results, "demo")
    tables = dict(re.findall(r"\\caption\{(\w+) .*?\\midrule(.*?)\\bottomrule", text, flags=re.S))
    assert set(tables) == {"resnet", "sde"}
    for (model, explainer, metric), row in final_rows(results).items():
        if metric == "deletion":
            line = next(line for line in tables[model].splitlines() if latex(explainer) in line.split("&")[0])
            value, half = re.findall(r"[\d.]+", line.split("&")[1])
            assert float(value) == pytest.approx(row.value, abs=5.1e-4)
            assert float(half) == pytest.approx((row.high - row.low) / 2, abs=5.1e-4)
            real = [
                r.value
                for key, r in final_rows(results).items()
                if key[0] == model and key[2] == metric and key[1] in REAL
            ]
            assert (r"\mathbf" in line.split("&")[1]) == (explainer in REAL and row.value == min(real))
    assert r"deletion $\downarrow$" in text and r"insertion $\uparrow$" in text
    assert "$n$ & 24 & 24 & 24 \\\\" in text
    assert r"\label{tab:demo-resnet}" in text and r"(accuracy " in text
    assert "smoothness.total" not in text, "headlines only"


def test_controls_are_set_apart_and_never_bold(results: Results) -> None:
    text = results_to_latex(results)
    for table in re.findall(r"\\toprule(.*?)\\bottomrule", text, flags=re.S):
        _, real, controls = table.split(r"\midrule")
        assert r"\textit" not in real and real.count(r"\mathbf") == 3
        assert controls.count(r"\textit") == 2 and r"\mathbf" not in controls


def test_names_are_escaped(results: Results) -> None:
    nasty = Results(rows=[replace(r, model=NASTY if r.model == "sde" else r.model) for r in final(results).rows])
    text = results_to_latex(nasty, NASTY)
    assert balanced(without_comments(text))
    assert (
        r"a\_b 50\% \{x\} \textbackslash{}foo \#1 \$y\$ \textasciitilde{}\textasciicircum{} \textless{}\&\textgreater{}\textbar{}"
        in text
    )
    assert all(re.fullmatch(r"[\w.:-]+", label) for label in re.findall(r"\\label\{(.*?)\}", text))


def test_a_sweep_has_its_models_below_each_other(results: Results) -> None:
    rows = [r for r in final(results).rows if r.model == "sde" and r.explainer in ("ig", "random_map", "")]
    sweep = Results(rows=[replace(r, model=f"noise={k}", value=r.value + 0.1 * k) for k in range(3) for r in rows])
    text = results_to_latex(sweep)
    tables = re.findall(r"\\midrule(.*?)\\bottomrule", text, flags=re.S)
    assert len(tables) == 2 and all(table.count("noise=") == 3 for table in tables)
    assert "random\\_map (a control)" in text
    first = tables[0].splitlines()[1]
    assert first.startswith("noise=0") and r"\mathbf" in first.split("&")[1], "lower deletion is better"


def test_many_metrics_take_several_tables(results: Results) -> None:
    rows = final(results).rows
    rows = rows + [replace(r, metric=f"extra_{k}") for r in rows if r.metric == "deletion" for k in range(4)]
    text = results_to_latex(Results(rows=rows))
    assert text.count(r"\begin{table}") == 2 * 2
    assert len(set(re.findall(r"\\label\{.*?\}", text))) == 4


def test_digits_follow_the_narrowest_interval() -> None:
    assert plus_minus([(0.6, 0.5, 0.7), (0.51234, 0.49, 0.53)]) == [("0.600", "0.100"), ("0.512", "0.020")]
    assert plus_minus([(-12.0, -20.0, -4.0)]) == [("-12.0", "8.0")]
    assert plus_minus([(math.nan, math.nan, math.nan), (0.5, math.nan, math.nan)]) == [("n/a", ""), ("0.500", "")]
    assert plus_minus([(1e-7, 0.9e-7, 1.1e-7)]) == [("1.00e-07", "1.00e-08")]


def test_tables_are_written_beside_the_report(results: Results, tmp_path: Path) -> None:
    folder = RunDirectory(tmp_path / "run")
    folder.write_config({})
    folder.write_results(results)
    written = {path.name for path in write_exports(folder, folder.read_results())}
    assert {"table.md", "table.tex"} <= written
    assert (folder.path / "table.md").read_text().count("deletion ↓") == 6
    assert "[" not in (folder.path / "table.md").read_text().splitlines()[2]
    assert r"\toprule" in (folder.path / "table.tex").read_text()


def test_diagrams_are_files_of_their_own(results: Results, tmp_path: Path) -> None:
    folder = RunDirectory(tmp_path)
    written = [path for path in write_exports(folder, final(results)) if path.suffix == ".svg"]
    assert {path.name for path in written} == {
        f"ranks_{model}_{metric}.svg"
        for model in ("resnet", "sde")
        for metric in ("deletion", "insertion", "max_sensitivity")
    }
    for path in written:
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in path.read_text() and "gradcam" in "".join(root.itertext())


def test_parquet_holds_the_values_per_image(results: Results, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = RunDirectory(tmp_path / "0.1")
    folder.write_config({})
    named = Results(
        [replace(r, model="0.1") for r in results.rows], {("0.1", *k[1:]): v for k, v in results.per_image.items()}
    )
    folder.write_results(named)
    with open(folder.path / "per_image.csv", "a") as file:
        file.write("1,val,0.1,ig,del")  # a killed process
    write_exports(folder, folder.read_results())
    table = parquet.read_table(folder.path / "per_image.parquet").to_pylist()
    assert len(table) == sum(len(v) for v in named.per_image.values())
    for line in table:
        assert named.per_image[line["model"], line["explainer"], line["metric"]][line["sample_id"]] == line["value"]
    (folder.path / "per_image.csv").write_text(
        "epoch,split,model,explainer,metric,sample_id,value\n1,val,m,ig,deletion,none,0.1\n"
    )
    with pytest.raises(UserError, match=r"per_image\.csv is damaged"):
        write_exports(folder, named)
