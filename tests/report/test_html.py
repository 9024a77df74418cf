"""The report is one small, valid, accessible file that loads nothing and says everything."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from explainode.errors import UserError
from explainode.metrics.results import Results
from explainode.report.html import render, write_report
from explainode.report.markup import Markup, join, tag
from explainode.runs.directory import RunDirectory
from explainode.wording import number

Build = Callable[..., Results]
NASTY = "<img onerror=x>.jpg"
VOID = {"meta", "img", "input", "br", "hr", "wbr"}


class Page(HTMLParser):
    """Collects elements and texts, and insists that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_results: Build) -> Path:
    """The run of two models, with trouble in it, and its report."""
    results = make_results(images=12, side=32, n=24, epochs=3)
    attribution = results.maps[1].attribution.copy()
    attribution[0], attribution[1, 0, 0, 0], attribution[2, 0, 0, 0] = 0, np.nan, np.inf
    results.maps[1] = replace(results.maps[1], attribution=attribution)
    results.warnings = [f"skipped {NASTY}: not a picture"]
    run = RunDirectory(tmp_path_factory.mktemp("runs") / "run")
    run.write_config({"name": "demo", "seed": 3, "data": {"root": "<b>"}})
    run.write_class_names([NASTY, "square", "star", "ring"])
    run.write_results(results)
    assert write_report(run.path) == run.path / "report.html"
    return run.path


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_it_is_in_the_order_of_reading(page: Page) -> None:
    headings = re.findall(
        r"Verdict Warnings Numbers Ranks Beyond the centre prior Agreement Accuracy and sensitivity Curves Pictures Over the epochs The run",
        page.text,
    )
    assert len(headings) == 1, "the links at the top"
    sections = [a["id"] for a in page.all("section") if a.get("id")]
    named = [
        "verdict",
        "warnings",
        "numbers",
        "ranks",
        "prior",
        "agreement",
        "front",
        "curves",
        "pictures",
        "trend",
        "run",
    ]
    assert sections == named
    assert {a["href"] for a in page.all("a")} >= {f"#{name}" for name in sections}
    assert "sde: this network has better max_sensitivity than resnet" in page.text
    assert "Which explanation to trust" in page.text
    assert "seed" in page.text and "torch" in page.text


def test_it_loads_nothing(page: Page) -> None:
    for name, attributes in page.elements:
        assert name not in {
            "script",
            "link",
            "iframe",
            "object",
            "embed",
            "base",
            "form",
            "audio",
            "video",
            "foreignobject",
        }
        for key, value in attributes.items():
            assert not key.startswith("on"), f"{key} on {name}"
            if key in {"src", "href"}:
                assert value is not None and value.startswith(("data:image/webp;base64,", "#")), value
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_nothing_points_to_the_network(folder: Path, page: Page) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[\w.-]+\.\w", re.sub(r"base64,[\w+/=]+", "", text))
    assert "@import" not in text


def test_every_number_of_the_table_is_there(page: Page, folder: Path) -> None:
    for row in RunDirectory(folder).read_results().rows:
        if row.epoch == 2 and row.explainer:
            assert number(row.value) in page.text


def test_names_are_text_and_never_tags(page: Page) -> None:
    assert f"skipped {NASTY}: not a picture" in page.text
    assert all("onerror" not in attributes for _, attributes in page.elements)
    assert any(NASTY in (a.get("alt") or "") for a in page.all("img"))


def test_pictures_have_words_and_the_right_pixels(page: Page, folder: Path) -> None:
    images = page.all("img")
    assert all(a["alt"] for a in images)
    alts = [a["alt"] or "" for a in images]
    for words in ("the map is zero everywhere", "the map contains NaN", "the map contains infinity", "object outlined"):
        assert sum(words in alt for alt in alts) >= 1
    cams = [a["src"] for a in images if "gradcam" in (a["alt"] or "")]
    assert len(set(cams)) == len(cams) >= 2 * 8, "no map is shown in place of another"
    source = next(a["src"] for a in images if a["alt"] and a["alt"].startswith("ig of sde for image 0")) or ""
    from explainode.report.board import make_board
    from explainode.report.panels import draw_map

    board = make_board(RunDirectory(folder).read_results().maps)
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB"))
    np.testing.assert_array_equal(drawn, draw_map(board, "sde", "ig", 0))  # small pictures are kept without loss


def test_it_is_accessible(page: Page) -> None:
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1
    assert "width=device-width" in str(page.all("meta"))
    tables = page.all("table")
    assert len(page.all("caption")) + sum("aria-label" in a for a in tables) >= len(tables)
    assert all(a.get("scope") in {"row", "col", "rowgroup"} for a in page.all("th"))
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in page.all("svg"))
    ids = [a["id"] for _, a in page.elements if a.get("id")]
    assert len(ids) == len(set(ids))
    assert {(a["href"] or "")[1:] for a in page.all("a")} <= set(ids)


def test_the_best_is_bold_and_underlined_and_controls_are_set_apart(page: Page, folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8").partition('id="numbers"')[2].partition("</section>")[0]
    marked = re.findall(r"<b><u>([^<]+)</u></b>", text)
    assert marked[0] == "Bold and underlined"
    assert len(marked) - 1 >= 12, "one model for each of four explainers and three headlines"
    controls = re.findall(r'<tr class="control">.*?</tr>', text)
    assert len(controls) == 8
    assert not any("<u>" in row for row in controls)


@pytest.mark.slow
def test_two_hundred_maps_fit_into_three_megabytes(make_results: Build) -> None:
    """The hardest case: 224-pixel maps of noise, which no picture format packs well."""
    text = render(
        {"name": "large"}, {}, make_results(images=16, side=224, n=32, epochs=2, models=("a", "b", "c")), [], "large"
    )
    assert len(text.encode()) < 3 * 2**20
    assert len([a for a in Page(text).all("img") if " of " in (a["alt"] or "")]) >= 200


def test_many_models_and_explainers_stay_within_the_budget(make_results: Build) -> None:
    explainers = ("saliency", "ig", "smoothgrad", "random_map")
    results = make_results(images=9, side=112, n=9, epochs=1, models=tuple("abcd"), explainers=explainers)
    results.maps += [replace(m, explainer=f"{m.explainer}_{i}") for m in results.maps for i in range(4)]
    results.curves = {}
    text = render({}, {}, results, [], "many")
    assert len(text.encode()) < 3 * 2**20
    assert len([a for a in Page(text).all("img") if " of " in (a["alt"] or "")]) <= 420


def test_runs_without_maps_curves_or_results_have_reports(tmp_path: Path, make_results: Build) -> None:
    assert "Nothing was measured yet." in Page(render({}, {}, Results(), [], "empty")).text
    results = make_results(images=1, side=16, n=8, epochs=1, models=("resnet",))
    results.maps, results.curves = [], {}
    page = Page(render({"name": None}, {}, results, [], "bare"))
    assert [a["id"] for a in page.all("section") if a.get("id")] == [
        "verdict",
        "warnings",
        "numbers",
        "ranks",
        "prior",
        "agreement",
        "run",
    ]


def test_maps_that_do_not_belong_together_are_a_warning(make_results: Build) -> None:
    results = make_results(images=2, side=16, n=8, epochs=1)
    results.maps[-1] = replace(results.maps[-1], image=255 - results.maps[-1].image)
    page = Page(render({}, {}, results, [], "mixed"))
    assert "No pictures are shown: resnet and sde were explained on different pictures" in page.text


def test_it_can_be_rebuilt_to_the_letter(tmp_path: Path, make_results: Build) -> None:
    run = RunDirectory(tmp_path)
    run.write_config({"name": "again"})
    run.write_results(make_results(images=2, side=16, n=8, epochs=2))
    first = write_report(tmp_path).read_bytes()
    assert write_report(tmp_path).read_bytes() == first


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_markup_escapes_all_but_itself() -> None:
    assert (
        tag("td", "<b>", Markup("<i>"), title='"&', hidden=True, colspan=None)
        == '<td title="&quot;&amp;" hidden>&lt;b&gt;<i></td>'
    )
    assert join("a<", ["b>", None, Markup("<br>")]) == "a&lt;b&gt;<br>"
    assert tag("img", alt="") == '<img alt="">'


def test_numbers_of_the_network_itself_are_in_the_table(make_results: Build, tmp_path: Path) -> None:
    results = make_results(images=2, side=16, n=24, epochs=1)
    like = next(row for row in results.rows if row.metric == "accuracy")
    results.rows.append(
        replace(like, metric="kappa", value=0.1234, low=0.11, high=0.13, higher_is_better=False, protocol="gap")
    )
    folder = RunDirectory(tmp_path)
    folder.write_config({})
    folder.write_results(results)
    text = " ".join(Page(write_report(tmp_path).read_text(encoding="utf-8")).words)
    assert "kappa" in text and "of the network" in text and number(0.1234) in text


def test_many_explainers_stand_in_bands_below_each_other(make_results: Build) -> None:
    explainers = tuple(f"method_{k}" for k in range(16))
    text = render(
        {"name": "bands"},
        {},
        make_results(images=1, side=16, n=8, epochs=1, models=("net",), explainers=explainers),
        [],
        "bands",
    )
    card = text[text.index("<article") : text.index("</article>")]
    bands = [len(re.findall('scope="col"', band)) for band in card.split("<tbody>")[1:]]
    assert sum(bands) == 16 and len(bands) == 3 and max(bands) <= 7
    assert "method_<wbr>15" in card


def test_a_large_table_is_folded_not_cut(make_results: Build) -> None:
    """Fourteen explainers by many metrics: the first ones stand open, the others in a fold, none is missing."""
    results = make_results(
        images=1, side=16, n=8, epochs=1, models=("a", "b", "c"), explainers=tuple(f"method_{k}" for k in range(14))
    )
    results.maps, results.curves = [], {}
    like = [row for row in results.rows if row.metric == "deletion"]
    results.rows += [replace(row, metric=f"extra_{k}") for row in like for k in range(6)]
    text = render({}, {}, results, [], "large")
    numbers = text.partition('id="numbers"')[2].partition("</section>")[0]
    before, _, folded = numbers.partition("<details")
    assert before.count('scope="rowgroup"') == 4 and "extra_5" not in before
    assert "5 more metrics: extra_1, extra_2" in folded
    assert numbers.count('scope="rowgroup"') == 3 + 6 + 1
    Page(text)
