"""The pictures of a report: a card per image with its maps, models below each other and explainers side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from explainode.metrics.results import Results
from explainode.report.board import Board
from explainode.report.colors import data_uri, fault, webp
from explainode.report.html_tables import model_dot
from explainode.report.markup import Markup, join, tag
from explainode.report.panels import class_name, draw_contour, draw_map, legend
from explainode.report.picks import Group, Pick, choose_images

PICTURE_BYTES = 2_100_000  # of all pictures as they stand in the page, base64 included
MOST_MAPS = 420
COLUMNS = 7  # explainers that fit beside each other; more go into further bands below
# longer side and quality, from the best to the smallest; 100 is lossless
ENCODINGS = ((112, 100), (224, 80), (192, 75), (160, 70), (128, 60), (112, 45), (96, 30), (64, 20))
FAULT_WORDS = {"zero": "is zero everywhere", "NaN": "contains NaN", "infinite": "contains infinity"}


@dataclass(frozen=True)
class Encoding:
    """Longer side and WebP quality of all pictures of a page."""

    largest: int
    quality: int

    def uri(self, picture: np.ndarray) -> str:
        """The picture as an address that carries it."""
        return data_uri(webp(picture, self.quality, self.largest))


def pictures_section(results: Results, board: Board, class_names: Sequence[str]) -> Markup:
    """Switch, legend and three groups of cards, within the budget of bytes."""
    maps_per_image = max(1, len(board.heatmap))
    groups = choose_images(results, board, each=int(np.clip(MOST_MAPS // (3 * maps_per_image), 1, 8)))
    encoding = choose_encoding(board, [pick.row for group in groups for pick in group.picks])
    names = [("maps", "Maps"), ("overlay", "Over the picture")]
    switch = [
        tag(
            "label", tag("input", type="radio", name="view", id=f"view-{key}", checked=key == "maps"), tag("span", word)
        )
        for key, word in names
    ]
    fieldset = tag("fieldset", tag("legend", "Show", class_="unseen"), switch, class_="switch")
    note = tag("p", legend(board), class_="note")
    return join(
        tag("div", note, fieldset, class_="bar"), [_group(group, board, class_names, encoding) for group in groups]
    )


def choose_encoding(board: Board, rows: Sequence[int], budget: int = PICTURE_BYTES) -> Encoding:
    """The best encoding whose pages stay within the budget, judged by the costliest maps of a few images; the smallest one at worst."""
    side = max(board.image.shape[1:3])
    probes = list(dict.fromkeys(rows[:: max(1, len(rows) // 3)]))[:3]
    drawn = [draw_map(board, *key, row) for row in probes for key in board.heatmap]
    inputs = [board.image[row] for row in probes]
    for largest, quality in ENCODINGS:
        if quality == 100 and side > largest:
            continue
        encoding = Encoding(largest, quality)
        each = sum(len(encoding.uri(p)) for p in drawn) + 2 * sum(
            len(encoding.uri(p)) for p in inputs
        )  # the input is under its maps, too
        if each / max(1, len(probes)) * len(rows) * 1.08 <= budget:
            return encoding
    return Encoding(*ENCODINGS[-1])


def _group(group: Group, board: Board, class_names: Sequence[str], encoding: Encoding) -> Markup:
    cards = [_card(pick, board, class_names, encoding) for pick in group.picks]
    also = Markup("")
    if group.elsewhere:
        links = [
            join(tag("a", f"#{board.sample_id[p.row]}", href=f"#image-{board.sample_id[p.row]}"), f" ({p.reason})")
            for p in group.elsewhere
        ]
        also = tag("p", "Shown above: " if cards else "All shown above: ", join(list(_between(links))), class_="note")
    return tag("section", tag("h3", group.title), tag("p", group.note, class_="note"), cards, also, class_="shots")


def _between(items: Sequence[Markup]) -> Iterator[Markup]:
    for i, item in enumerate(items):
        yield join(", " if i else "", item)


def _card(pick: Pick, board: Board, class_names: Sequence[str], encoding: Encoding) -> Markup:
    row, sample = pick.row, int(board.sample_id[pick.row])
    label = int(board.label[row])
    truth = class_name(class_names, label) if label >= 0 else None
    title = tag("h4", f"#{sample}", tag("span", f" {truth}" if truth else " no label", class_="truth"))
    badge = tag("span", pick.reason, class_="chip") if pick.reason else ""
    plain = encoding.uri(board.image[row])
    shown = plain if board.mask is None else encoding.uri(_with_contour(board, row))
    alt = (
        f"input image {sample}"
        + (f", {truth}" if truth else "")
        + (", object outlined" if board.mask is not None else "")
    )
    figure = tag("figure", tag("img", src=shown, alt=alt, loading="lazy"), tag("figcaption", "input"), class_="input")
    bands = []
    for start in range(0, len(board.explainers), COLUMNS):
        explainers = board.explainers[start : start + COLUMNS]
        head = tag(
            "tr",
            tag("td"),
            [
                tag("th", _breakable(e), scope="col", class_="control" if e in board.controls else None)
                for e in explainers
            ],
        )
        bands.append(
            tag(
                "tbody",
                head,
                [_maps_of(board, model, explainers, row, class_names, encoding) for model in board.models],
            )
        )
    table = tag("table", tag("caption", f"Maps of image {sample}", class_="unseen"), bands)
    scroll = tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=f"maps of image {sample}")
    return tag(
        "article",
        tag("header", title, badge),
        tag("div", figure, scroll, class_="shot-body"),
        id=f"image-{sample}",
        style=f"--picture: url({plain})",
    )


def _breakable(name: str) -> Markup:
    """A name that may go on in the next line after each underscore."""
    first, *rest = name.split("_")
    return join(first, [join("_", tag("wbr"), word) for word in rest])


def _with_contour(board: Board, row: int) -> np.ndarray:
    """The picture with its mask's border, enlarged first where it is small, so that the line stays thin."""
    assert board.mask is not None
    factor = 1 if max(board.image.shape[1:3]) > 112 else 2
    picture, inside = board.image[row], board.mask[row] == 1
    return draw_contour(picture.repeat(factor, 0).repeat(factor, 1), inside.repeat(factor, 0).repeat(factor, 1))


def _maps_of(
    board: Board, model: str, explainers: Sequence[str], row: int, class_names: Sequence[str], encoding: Encoding
) -> Markup:
    target, label, probability = (
        int(board.target[model][row]),
        int(board.label[row]),
        float(board.probability[model][row]),
    )
    state = "unknown" if label < 0 else "right" if target == label else "wrong"
    mark = {"unknown": "", "right": "✓ ", "wrong": "✗ "}[state]
    name = class_name(class_names, target)
    said = tag(
        "span",
        f"{mark}{name} {probability:.2f}",
        class_=f"said {state}",
        title=f"explained class: {name}, probability {probability:.3f}",
    )
    head = tag("th", tag("span", model_dot(board.models, model), model, class_="model"), said, scope="row")
    return tag("tr", head, [_map(board, model, explainer, row, encoding) for explainer in explainers])


def _map(board: Board, model: str, explainer: str, row: int, encoding: Encoding) -> Markup:
    if (model, explainer) not in board.heatmap:
        return tag("td", tag("span", "not measured", class_="muted"))
    reason = fault(board.heatmap[model, explainer][row])
    kind = "fault" if reason else board.kind[explainer]
    alt = f"{explainer} of {model} for image {board.sample_id[row]}" + (
        f": the map {FAULT_WORDS[reason]}" if reason else ""
    )
    image = tag("img", src=encoding.uri(draw_map(board, model, explainer, row)), alt=alt, loading="lazy")
    return tag("td", tag("div", image, class_=f"map {kind}"))
