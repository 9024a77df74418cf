"""Several runs as one set of results, for `explainode compare`: only what was measured the same way, on the same data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from explainode.errors import UserError
from explainode.metrics.results import Key, Results, Row
from explainode.runs.directory import Place, RunDirectory, final
from explainode.wording import enumerate_words

NOT_THE_DATA = {
    "root",
    "batch_size",
    "num_workers",
    "pin_memory",
    "download",
    "train_size",
    "augment",
    "drop_last",
    "_target_",
}


@dataclass(frozen=True)
class Source:
    """A run to compare: its folder, what its models are called, and the measurement of each model that counts (the last one by default).

    With one model, and `short`, the label alone is its name, otherwise label/model.
    """

    folder: Path
    label: str
    short: bool = False
    at: Mapping[str, Place] = field(default_factory=dict)


def name_runs(folders: Sequence[Path]) -> list[Source]:
    """The runs under their folders' names, with their parents' where those are the same.

    Raises:
        UserError: if two have one name.
    """
    labels = [folder.resolve().name for folder in folders]
    if len(set(labels)) < len(labels):
        labels = ["/".join(folder.resolve().parts[-2:]) for folder in folders]
    if len(set(labels)) < len(labels):
        raise UserError(f"the runs need different names, got {', '.join(map(str, folders))}")
    return [Source(folder, label) for folder, label in zip(folders, labels, strict=True)]


def merge_runs(runs: Sequence[Source | Path]) -> Results:
    """The results of runs side by side, each model under `run/model` (the run's folder name).

    Raises:
        UserError: if a folder has no results, two have one name, or two measured something in different ways, on different data, on different
            splits, or on no common image: then their numbers do not compare.
    """
    paths = [run for run in runs if isinstance(run, Path)]
    sources = name_runs(paths) if paths else [run for run in runs if isinstance(run, Source)]
    merged = Results()
    first: dict[tuple[str, str], tuple[Row, Source]] = {}
    data: tuple[Source, dict[str, Any]] | None = None
    splits: dict[str, str] = {}
    for source in sources:
        results = read_source(source)
        for row in results.rows:
            owner = splits.setdefault(row.split, source.label)
            if (other := next((s for s in splits if s != row.split), None)) is not None:
                raise UserError(
                    f"{splits[other]} was measured on the {other} split and {owner} on the {row.split} split; "
                    "measure both on one with explainode evaluate run=... evaluation.split=..."
                )
            known, holder = first.setdefault((row.explainer, row.metric), (row, source))
            if known.protocol != row.protocol:
                raise UserError(_unlike(known, holder, row, source))
        own = _data_settings(source)
        if own is not None and data is not None:
            merged.warnings += _unlike_data(*data, source, own)
        data = data or (None if own is None else (source, own))
        _extend(merged, results, source)
    _check_images(merged, sources)
    merged.recipes = _recipes(sources)
    return merged


def read_source(source: Source) -> Results:
    """The measurements of a run that count.

    Raises:
        UserError: if the folder has no results.
    """
    folder = _folder(source)
    return folder.read_results(source.at) if source.at else final(folder.read_results())


def _folder(source: Source) -> RunDirectory:
    if not (source.folder / "metrics.csv").is_file():
        raise UserError(
            f"{source.folder} has no metrics.csv; name run directories, such as runs/demo, or a sweep under multirun/"
        )
    return RunDirectory(source.folder)


def _unlike(a: Row, a_source: Source, b: Row, b_source: Source) -> str:
    """Why two measurements do not compare: both protocols with their hashes, and the settings that differ."""
    subject = f"{a.metric} of {a.explainer}" if a.explainer else a.metric
    differing = "; ".join(
        protocol_differences(a, b, _metric_settings(a_source, a.metric), _metric_settings(b_source, b.metric))
    )
    return (
        f"{subject} is {a.protocol!r} in {a_source.label} and {b.protocol!r} in {b_source.label} ({differing}); "
        "measure both the same way with explainode evaluate run=..."
    )


def protocol_differences(
    a: Row, b: Row, a_settings: Mapping[str, Any] = {}, b_settings: Mapping[str, Any] = {}
) -> list[str]:
    """The settings in which two protocols differ, as `name: one and other`; the metric's own settings, where its short protocol says no more."""
    found = []
    (a_words, a_facts), (b_words, b_facts) = (_parts(row.protocol) for row in (a, b))
    for name in dict.fromkeys([*a_facts, *b_facts]):
        if name != "hash" and a_facts.get(name) != b_facts.get(name):
            found.append(f"{name}: {a_facts.get(name, 'not said')} and {b_facts.get(name, 'not said')}")
    own = [key for key in dict.fromkeys([*a_settings, *b_settings]) if a_settings.get(key) != b_settings.get(key)]
    if own:
        found += [f"{key}: {a_settings.get(key, 'not set')} and {b_settings.get(key, 'not set')}" for key in own]
    elif a_words != b_words:
        found.append(f"{a_words} and {b_words}")
    elif a_facts.get("hash") != b_facts.get("hash"):
        found.append(
            f"hash: {a_facts.get('hash')} and {b_facts.get('hash')}, a setting that the short protocol does not name, or another version"
        )
    return found or ["the protocols are written differently"]


def _parts(protocol: str) -> tuple[str, dict[str, str]]:
    """ "deletion[blur,101]#1a2b noise=off seed=0" -> its words and its facts."""
    words, *facts = protocol.split(" ")
    name, _, digest = words.partition("#")
    found = {"hash": digest} if digest else {}
    return name, found | dict(fact.split("=", 1) for fact in facts if "=" in fact)


def _metric_settings(source: Source, metric: str) -> dict[str, Any]:
    """What the run's configuration says of a metric; nothing for runs without one."""
    if not (source.folder / "config.yaml").is_file():
        return {}
    entry = (RunDirectory(source.folder).read_config().get("metric") or {}).get(metric.split(".")[0])
    return dict(entry) if isinstance(entry, Mapping) else {}


def _data_settings(source: Source) -> dict[str, Any] | None:
    """The data that a run was measured on; None where its configuration does not say."""
    if not (source.folder / "config.yaml").is_file():
        return None
    data = RunDirectory(source.folder).read_config().get("data")
    return dict(data) if isinstance(data, Mapping) and "_target_" in data else None


def _unlike_data(a_source: Source, a: Mapping[str, Any], b_source: Source, b: Mapping[str, Any]) -> list[str]:
    """A warning where two runs set their data differently.

    Raises:
        UserError: if it is other data altogether.
    """
    if a["_target_"] != b["_target_"]:
        names = [str(settings["_target_"]).rsplit(".", 1)[-1] for settings in (a, b)]
        raise UserError(
            f"{a_source.label} was measured on {names[0]} and {b_source.label} on {names[1]}; "
            "measure both on the same data with explainode evaluate run=... data=..."
        )
    keys = [key for key in dict.fromkeys([*a, *b]) if key not in NOT_THE_DATA and a.get(key) != b.get(key)]
    if not keys:
        return []
    said = enumerate_words([f"data.{key} ({a.get(key)} and {b.get(key)})" for key in keys])
    return [
        f"{a_source.label} and {b_source.label} set their data differently, so equal image numbers may be other pictures: {said}."
    ]


TRAINING = ("data", "model", "module", "trainer", "variants")  # the parts of a configuration that make a network
PLACES = {"root", "num_workers", "pin_memory", "download", "default_root_dir", "enable_progress_bar", "logger"}


def _recipes(sources: Sequence[Source]) -> dict[str, str]:
    """{model: its recipe}, what trained it but for the seed, of runs whose configuration says so; named after the first run that has it."""
    names: dict[tuple[str, str], str] = {}
    found: dict[str, str] = {}
    for source in sources:
        if not (source.folder / "config.yaml").is_file():
            continue
        config = RunDirectory(source.folder).read_config()
        if "model" not in config:
            continue
        facts = json.dumps(_without_seeds({key: config.get(key) for key in TRAINING}), sort_keys=True, default=str)
        models = list(dict.fromkeys(row.model for row in read_source(source).rows))
        label = ", ".join(word for word in source.label.split(", ") if not word.startswith("seed=")) or "seed"
        for model in models:
            name = label if source.short and len(models) == 1 else f"{label}/{model}"
            found[_name(source, model, len(models))] = names.setdefault((facts, model), _free_name(name, names))
    return found


def _free_name(name: str, names: Mapping[tuple[str, str], str]) -> str:
    """The name, or with a number behind it where another recipe has it."""
    taken = set(names.values())
    return next(n for n in (name, *(f"{name} ({k})" for k in range(2, len(taken) + 3))) if n not in taken)


def _without_seeds(settings: Any) -> Any:
    """Settings without the numbers that only choose one draw of many, and without where things lie."""
    if isinstance(settings, Mapping):
        return {
            key: _without_seeds(value)
            for key, value in settings.items()
            if key not in PLACES and not (key == "seed" and isinstance(value, int))
        }
    return [_without_seeds(value) for value in settings] if isinstance(settings, (list, tuple)) else settings


def _check_images(merged: Results, sources: Sequence[Source]) -> None:
    """Refuse runs of which two have no image in common.

    Raises:
        UserError: naming the two.
    """
    ids: dict[str, set[int]] = {}
    for (model, explainer, _), values in merged.per_image.items():
        if explainer:
            ids.setdefault(model, set()).update(values)
    models = list(ids)
    for model in models[1:]:
        if not ids[models[0]] & ids[model]:
            raise UserError(
                f"{models[0]} and {model} were measured on different images ({_range(ids[models[0]])} and {_range(ids[model])}); "
                "measure both on the same with explainode evaluate run=... evaluation.images=..."
            )


def _range(ids: set[int]) -> str:
    return f"{len(ids)} images, #{min(ids)} to #{max(ids)}"


def _extend(merged: Results, results: Results, source: Source) -> None:
    """Adds `results` with the run's label before each model's name, or in its place."""
    models = len({row.model for row in results.rows})

    def name(model: str) -> str:
        return _name(source, model, models)

    def named(key: Key) -> Key:
        model, explainer, metric = key
        return name(model), explainer, metric

    merged.rows += [replace(row, model=name(row.model)) for row in results.rows]
    merged.per_image |= {named(key): values for key, values in results.per_image.items()}
    merged.curves |= {named(key): curve for key, curve in results.curves.items()}
    merged.maps += [replace(maps, model=name(maps.model)) for maps in results.maps]
    merged.warnings += [f"{source.label}: {warning}" for warning in results.warnings]


def _name(source: Source, model: str, models: int) -> str:
    """What a model of a run with so many is called among others."""
    epoch = f"@epoch{source.at[model][0]:03d}" if model in source.at else ""
    return (source.label if source.short and models == 1 else f"{source.label}/{model}") + epoch


# ---- accuracies


@dataclass(frozen=True)
class Matching:
    """The measurements with the most alike accuracies, and how they were chosen."""

    sources: list[Source]
    sentences: list[str]


def match_accuracy(sources: Sequence[Source]) -> Matching:
    """For each model the epoch at which it was as accurate as the weakest model is at its end.

    What is measured at each epoch is the callback's: on validation images, without the metrics that it leaves out. Of epochs equally near the
    later one counts.

    Raises:
        UserError: if a folder has no results, there are fewer than two models, or no model was measured after more than one epoch.
    """
    measured = {(i, model): found for i, source in enumerate(sources) for model, found in _accuracies(source).items()}
    if len(measured) < 2:
        raise UserError(
            f"matching accuracies needs two models or more, got {len(measured)} that were measured after their epochs"
        )
    last = {key: found[max(found)] for key, found in measured.items()}
    weakest = min(last, key=lambda key: last[key].value)
    target = last[weakest].value
    if all(len(found) == 1 for found in measured.values()):
        raise UserError(
            "no model was measured after more than one epoch, so there is nothing to choose from; train with callback.explanations"
        )
    chosen = {
        key: last[key] if key == weakest else min(found.values(), key=lambda row: (abs(row.value - target), -row.epoch))
        for key, found in measured.items()
    }
    at: list[dict[str, Place]] = [{} for _ in sources]
    for (i, model), row in chosen.items():
        at[i][model] = (row.epoch, row.split)
    said = [
        f"{sources[i].label}/{model} after epoch {row.epoch} ({100 * row.value:.1f} % of {row.n}; {100 * last[i, model].value:.1f} % at its end)"
        for (i, model), row in chosen.items()
    ]
    weak = f"{sources[weakest[0]].label}/{weakest[1]}"
    sentences = [
        f"Matched to the accuracy of {weak}, the weakest, on {chosen[weakest].split} images: {enumerate_words(said)}."
    ]
    matched = [replace(source, at=places) for source, places in zip(sources, at, strict=True) if places]
    return Matching(matched, sentences + _not_measured(matched))


def _accuracies(source: Source) -> dict[str, dict[int, Row]]:
    """{model: {epoch: its accuracy}} on the split that was measured after the epochs."""
    rows = [row for row in _folder(source).read_rows() if row.metric == "accuracy" and not row.explainer]
    epochs: dict[str, set[int]] = {}
    for row in rows:
        epochs.setdefault(row.split, set()).add(row.epoch)
    split = max(epochs, key=lambda s: (s == "val", len(epochs[s])), default="")
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        if row.split == split:
            found.setdefault(row.model, {})[row.epoch] = row
    return found


def _not_measured(sources: Sequence[Source]) -> list[str]:
    """A sentence for each run on the metrics that its last measurement has and the chosen one lacks, and how to get them."""
    sentences = []
    for source in sources:
        rows = RunDirectory(source.folder).read_rows()
        ends = {row.metric for row in final(Results(rows=rows)).rows if "." not in row.metric and row.explainer}
        for model, (epoch, split) in source.at.items():
            here = {row.metric for row in rows if (row.model, row.epoch, row.split) == (model, epoch, split)}
            missing = sorted(ends - here)
            if not missing:
                continue
            path = source.folder / "checkpoints" / model / f"epoch{epoch:03d}.ckpt"
            how = (
                f"explainode evaluate run={source.folder} checkpoint={path}"
                if path.is_file()
                else "train with callback.checkpoint.save_top_k=-1, which keeps every epoch, and evaluate that checkpoint"
            )
            sentences.append(
                f"{enumerate_words(missing)} of {source.label}/{model} {'was' if len(missing) == 1 else 'were'} not measured after epoch {epoch}: {how}."
            )
    return sentences


def is_chosen(model: str) -> bool:
    """Whether a model's name says that its epoch was chosen."""
    return re.search(r"@epoch\d+$", model) is not None
