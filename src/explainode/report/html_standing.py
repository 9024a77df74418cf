"""Sections on how explainers stand: ranks, the centre prior, agreement of metrics, settings and maps, and accuracy against sensitivity."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence

import numpy as np

from explainode.metrics.ranks import MeanRanks
from explainode.metrics.results import Results
from explainode.report.board import Board, map_agreement
from explainode.report.comparisons import Comparison, compare_prior
from explainode.report.front import Front, front_figure
from explainode.report.html_tables import SIGNS, model_dot
from explainode.report.markup import Markup, join, tag
from explainode.report.rank_figure import rank_figure
from explainode.report.standing import (
    Standing,
    disagreement_sentence,
    leaders,
    metric_agreement,
    rank_stability,
    standing_sentence,
)
from explainode.wording import arrow, correlation, enumerate_words, interval, number, p_phrase, percent

FEW_MODELS = 3  # that stand open
RANKS_NOTE = (
    "Rank 1 is the best explainer on an image, and who has no value there is last; the axis shows mean ranks over the images, controls in italics. "
    "A bar joins neighbors of which no two are told apart: chance alone would make one such difference among all pairs in one of twenty studies. "
    "Nemenyi’s critical difference, drawn to scale for comparison, takes one spread for all pairs; the tests take each pair’s own."
)
AGREEMENT_NOTE = (
    "Kendall’s τ between the orders in which two metrics put the explainers, each in its own direction, controls left out: "
    "1 the same order, 0 unrelated, −1 the opposite."
)


def ranks_section(standings: Sequence[Standing], models: Sequence[str]) -> Markup:
    """For each model a sentence, the diagram of the first metric, and the others folded away with the table of mean ranks."""
    parts = [_of_model(models, found.model, _ranks_of(found)) for found in standings if found.ranks]
    return join(tag("p", RANKS_NOTE, class_="note"), _first_few(parts)) if parts else Markup("")


def _first_few(parts: Sequence[Markup], few: int = FEW_MODELS) -> Markup:
    """What is said of each model: the first ones open, the others, as of a sweep, in one fold."""
    if len(parts) <= few:
        return join(list(parts))
    return join(list(parts[:few]), _folded(join(list(parts[few:])), f"{len(parts) - few} more"))


def _of_model(models: Sequence[str], model: str, *content: object) -> Markup:
    """Content under the model's name, which a single model needs not."""
    return join(tag("h3", model_dot(models, model), model) if len(models) > 1 else "", *content)


def _ranks_of(found: Standing) -> Markup:
    diagrams = [_diagram(found, metric, ranks) for metric, ranks in found.ranks.items()]
    rest = diagrams[1:]
    more = _folded(join(rest), f"{len(rest)} further diagram{'s' * (len(rest) > 1)}") if rest else ""
    return join(
        tag("p", standing_sentence(found), class_="finding"), diagrams[0], more, _mean_ranks(found), _left_out(found)
    )


def _diagram(found: Standing, metric: str, ranks: MeanRanks) -> Markup:
    title = f"{metric} {arrow(ranks.higher_is_better)}"
    about = (
        f"chance of so unequal ranks if all were alike (Friedman’s test): {p_phrase(ranks.p)}, n = {ranks.n}"
        if not math.isnan(ranks.p)
        else f"all tied, n = {ranks.n}"
    )
    head = tag("figcaption", tag("b", title), f" · {about}")
    return tag(
        "figure",
        head,
        tag("div", rank_figure(ranks, f"{metric} of {found.model}", found.controls), class_="scroll"),
        class_="ranking",
    )


def _left_out(found: Standing) -> Markup:
    said = [f"{metric}: {reason}" for metric, reason in found.unranked.items()]
    said += [
        f"{metric} without {enumerate_words(names)} (too few numbers)"
        for metric, names in found.left_out.items()
        if metric in found.ranks
    ]
    return tag("p", f"Not ranked: {'; '.join(said)}.", class_="note") if said else Markup("")


def _mean_ranks(found: Standing) -> Markup:
    """Mean ranks of each explainer by each metric; the leaders of a column, those not told apart from the best, in bold."""
    if len(found.ranks) < 2:
        return Markup("")
    everyone = dict.fromkeys([*found.mean, *(e for ranks in found.ranks.values() for e in ranks.names)])
    metrics = [join(_breakable(m), " ", arrow(r.higher_is_better)) for m, r in found.ranks.items()]
    head = [tag("th", "explainer", scope="col", class_="sticky"), tag("th", "mean", scope="col")]
    first = {metric: leaders(ranks) for metric, ranks in found.ranks.items()}
    body = []
    for explainer in everyone:
        cells = [tag("td", f"{found.mean[explainer]:.2f}" if explainer in found.mean else "–", class_="mean")]
        for metric, ranks in found.ranks.items():
            rank = f"{ranks.mean_rank[ranks.names.index(explainer)]:.1f}" if explainer in ranks.names else "–"
            cells.append(
                tag("td", tag("b", rank) if explainer in first[metric] and explainer not in found.controls else rank)
            )
        body.append(
            tag(
                "tr",
                tag("th", explainer, scope="row", class_="sticky"),
                cells,
                class_="control" if explainer in found.controls else None,
            )
        )
    title = f"Mean ranks of {found.model} by metric"
    table = tag(
        "table",
        tag("thead", tag("tr", head, [tag("th", m, scope="col") for m in metrics])),
        tag("tbody", body),
        class_="grid",
        aria_label=title,
    )
    note = tag(
        "p",
        "Bold: not told apart from the explainer of the best mean rank. Each metric counts once in the mean, whatever it asks.",
        class_="note",
    )
    return tag(
        "details",
        tag("summary", f"Mean ranks by all {len(found.ranks)} metrics"),
        note,
        tag("div", table, class_="scroll"),
    )


def _breakable(name: str) -> Markup:
    first, *rest = name.split("_")
    return join(first, [join("_", tag("wbr"), word) for word in rest])


def prior_section(results: Results, models: Sequence[str]) -> Markup:
    """Metric by explainer: ahead of, behind or undecided against the centre prior, and who is nowhere ahead."""
    parts: list[Markup] = []
    for model in models:
        comparisons = compare_prior(results, model)
        if comparisons:
            table = _folded(_prior_table(comparisons, model), "By metric and explainer", unfolded=not parts)
            parts.append(_of_model(models, model, tag("p", _prior_sentence(comparisons), class_="finding"), table))
    if not parts:
        return Markup("")
    signs = {
        "better": "ahead",
        "worse": "behind",
        "equivalent": "equivalent: the difference is surely smaller than is of interest",
        "undecided": "undecided: chance alone could make it, one time in twenty among all of a metric",
    }
    legend = [join(tag("span", SIGNS[key], class_=f"sign {key}"), f" {word}  ") for key, word in signs.items()]
    note = "The centre prior is one bump in the middle of every picture; it has never seen the network. "
    return join(tag("p", note, legend, class_="note"), _first_few(parts))


def _prior_sentence(comparisons: Sequence[Comparison]) -> str:
    metrics = list(dict.fromkeys(c.metric for c in comparisons))
    outcomes: dict[str, list[str]] = {}
    for c in comparisons:
        outcomes.setdefault(c.subject, []).append(c.outcome)
    total = f"{len(metrics)} metric{'s' * (len(metrics) > 1)}"
    never = [e for e, found in outcomes.items() if "better" not in found]
    always = [e for e, found in outcomes.items() if set(found) == {"better"}]
    if len(never) == len(outcomes):
        return f"No explainer was seen ahead of the centre prior on any of {total}."
    said = [
        f"Ahead of the centre prior on all of {total}: {enumerate_words(always)}."
        if always
        else f"No explainer was seen ahead of the centre prior on all of {total}."
    ]
    said.append(
        f"Not seen ahead on any: {enumerate_words(never)}." if never else "Every explainer is ahead on at least one."
    )
    return " ".join(said)


def _prior_table(comparisons: Sequence[Comparison], model: str) -> Markup:
    metrics, explainers = (list(dict.fromkeys(getattr(c, name) for c in comparisons)) for name in ("metric", "subject"))
    found = {(c.metric, c.subject): c for c in comparisons}
    words = {"better": "ahead", "worse": "behind", "equivalent": "equivalent", "undecided": "undecided"}

    def cell(metric: str, explainer: str) -> Markup:
        c = found.get((metric, explainer))
        if c is None:
            return tag("td", tag("span", "–", class_="muted", title="not compared"))
        tip = f"{explainer} {number(c.subject_value)}, prior {number(c.reference_value)}, {p_phrase(c.adjusted)}, n = {c.n}"
        sign = join(tag("span", SIGNS[c.outcome], aria_hidden="true"), tag("span", words[c.outcome], class_="unseen"))
        return tag("td", tag("span", sign, class_=f"sign {c.outcome}", title=tip))

    head = tag(
        "tr",
        tag("th", "metric", scope="col", class_="sticky"),
        [tag("th", _breakable(e), scope="col") for e in explainers],
    )
    direction = {c.metric: arrow(c.higher_is_better) for c in comparisons}
    body = [
        tag("tr", tag("th", f"{m} {direction[m]}", scope="row", class_="sticky"), [cell(m, e) for e in explainers])
        for m in metrics
    ]
    table = tag(
        "table",
        tag("thead", head),
        tag("tbody", body),
        class_="glance dense",
        aria_label=f"{model} against the centre prior",
    )
    return tag("div", table, class_="scroll")


def agreement_section(standings: Sequence[Standing], board: Board | None, models: Sequence[str]) -> Markup:
    """Which metrics disagree, whether rankings survive other settings, and how alike the maps are."""
    metrics: list[Markup] = []
    settings: list[Markup] = []
    maps: list[Markup] = []
    for found in standings:
        sentence = disagreement_sentence(found)
        if sentence:
            names, matrix = metric_agreement(found)
            labels = [f"{m} {arrow(_direction(found, m))}".strip() for m in names]
            table = matrix_table(labels, matrix, f"Kendall’s τ between the metrics of {found.model}")
            metrics.append(
                _of_model(
                    models,
                    found.model,
                    tag("p", sentence, class_="finding"),
                    _folded(table, f"{len(names)} × {len(names)} matrix", unfolded=not metrics),
                )
            )
        for stable in rank_stability(found):
            table = matrix_table(
                stable.metrics, stable.matrix, f"Kendall’s τ between settings of {stable.kind}, {found.model}"
            )
            shown = _folded(table, f"{stable.kind}: matrix") if len(stable.metrics) > 2 else Markup("")
            who = join(model_dot(models, found.model), f"{found.model}, ") if len(models) > 1 else ""
            settings.append(join(tag("p", who, stable.sentence, class_="finding"), shown))
    for model in models:
        names, matrix = ((), np.empty((0, 0))) if board is None else map_agreement(board, model)
        controls = {} if board is None else board.controls
        if len(names) > 2:
            table = matrix_table(
                names,
                matrix,
                f"Rank correlation between the maps of {model}",
                frozenset(controls),
            )
            text = _maps_sentence(names, matrix, controls)
            maps.append(
                _of_model(
                    models,
                    model,
                    tag("p", text, class_="finding"),
                    _folded(table, f"{len(names)} × {len(names)} matrix", unfolded=not maps),
                )
            )
    parts = []
    if metrics:
        parts.append(
            join(tag("h3", "Which metrics disagree"), tag("p", AGREEMENT_NOTE, class_="note"), _first_few(metrics))
        )
    if settings:
        note = "The same metric under other settings, such as what replaces a pixel. A ranking that turns round says as much of the setting as of the maps."
        parts.append(
            join(tag("h3", "Rank stability"), tag("p", note, class_="note"), _first_few(settings, 2 * FEW_MODELS))
        )
    if maps:
        images = 0 if board is None else len(board)
        note = f"Spearman’s rank correlation of the maps’ block means (28 × 28 at most), averaged over the {images} images whose maps were kept."
        parts.append(join(tag("h3", "Agreement between maps"), tag("p", note, class_="note"), _first_few(maps)))
    return join(parts)


def _direction(found: Standing, metric: str) -> bool | None:
    return found.ranks[metric].higher_is_better if metric in found.ranks else None


def _folded(content: Markup, title: str, unfolded: bool = False) -> Markup:
    return tag("details", tag("summary", title), content, open=unfolded)


def _maps_sentence(names: Sequence[str], matrix: np.ndarray, controls: Container[str]) -> str:
    real = [i for i, name in enumerate(names) if name not in controls]
    pairs = sorted(
        (float(matrix[i, j]), names[i], names[j])
        for k, i in enumerate(real)
        for j in real[k + 1 :]
        if not np.isnan(matrix[i, j])
    )
    if not pairs:
        return "No two maps can be compared."
    (low, a, b), (high, c, d) = pairs[0], pairs[-1]
    if len(pairs) == 1:
        return f"{a} and {b}: {correlation(low)}."
    return f"Most alike: {c} and {d} ({correlation(high)}); least: {a} and {b} ({correlation(low)})."


def matrix_table(names: Sequence[str], matrix: np.ndarray, title: str, muted: frozenset[str] = frozenset()) -> Markup:
    """A heat map with its numbers: (M, M) in [-1, 1], blue for agreement, orange for contradiction, the stronger the fuller."""
    head = [
        tag("th", "", scope="col", class_="sticky"),
        *(tag("th", i + 1, scope="col", title=name) for i, name in enumerate(names)),
    ]
    body = []
    for i, name in enumerate(names):
        cells = [
            tag("td", "·", class_="self") if i == j else _heat(float(matrix[i, j]), f"{name} and {names[j]}")
            for j in range(len(names))
        ]
        label = join(tag("span", f"{i + 1} ", class_="muted"), name)
        body.append(
            tag(
                "tr", tag("th", label, scope="row", class_="sticky"), cells, class_="control" if name in muted else None
            )
        )
    table = tag("table", tag("thead", tag("tr", head)), tag("tbody", body), class_="grid heat", aria_label=title)
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=title)


def _heat(value: float, pair: str) -> Markup:
    if math.isnan(value):
        return tag("td", tag("span", "–", class_="muted"), title=f"{pair}: not comparable")
    sign = "alike" if value >= 0 else "against"
    text = correlation(value)
    return tag("td", text, class_=sign, style=f"--share: {100 * abs(value):.0f}%", title=f"{pair}: {text}")


def front_section(front: Front | None, models: Sequence[str]) -> Markup:
    """The scatter with its front, the sentence, and the numbers behind it."""
    if front is None:
        return Markup("")
    over = front.explainers[0] if len(front.explainers) == 1 else f"mean of {len(front.explainers)} explainers"
    svg = tag("div", Markup(front_figure(front, list(models))), class_="scroll")
    caption = (
        f"{front.metric} ({over}) and accuracy with 95 % intervals; filled: on the front, which the dashed line joins."
    )
    figure = tag("figure", svg, tag("figcaption", caption), class_="plot")
    body = []
    for point in sorted(front.points, key=lambda p: p.value):
        row = point.accuracy
        ends = f" ({100 * row.low:.1f}–{100 * row.high:.1f})" if not math.isnan(row.low) else ""
        cells = (
            f"{percent(row.value)}{ends}",
            f"{number(point.value)} ({interval(point.low, point.high)})",
            "yes" if point.front else "",
        )
        body.append(
            tag(
                "tr",
                tag("th", model_dot(models, point.model), point.model, scope="row", class_="sticky"),
                [tag("td", c) for c in cells],
            )
        )
    head = [tag("th", word, scope="col") for word in ("model", "accuracy ↑", f"{front.metric} ↓", "on the front")]
    table = tag(
        "table",
        tag("thead", tag("tr", head)),
        tag("tbody", body),
        class_="grid",
        aria_label="Accuracy and sensitivity of each model",
    )
    return join(
        tag("p", front.sentence, class_="finding"), figure, _folded(tag("div", table, class_="scroll"), "The numbers")
    )
