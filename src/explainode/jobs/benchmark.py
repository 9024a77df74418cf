"""Networks x explainers x metrics, cell by cell, so that nothing finished is ever lost or computed twice."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from explainode.errors import UserError
from explainode.evaluation import evaluate, missing_for
from explainode.files import replace_file
from explainode.hashing import digest, network_digest
from explainode.heartbeat import Heartbeat
from explainode.jobs.cells import Cells, write_tables
from explainode.jobs.grid import Grid
from explainode.jobs.images import build_data, choose_panel, correct_images, count_classes, select_images
from explainode.jobs.measure import choose_device, fit_explainers, many
from explainode.jobs.missing import Missing, read_missing, sentences, write_missing
from explainode.jobs.networks import (
    build_network,
    check_weights,
    fill_classes,
    in_memory_order,
    listed,
    run_folders,
    trained_networks,
    without_weights,
)
from explainode.jobs.protocol import CONTENT, PARTIAL, Protocol
from explainode.metrics.maps import concatenate_maps
from explainode.metrics.results import Results
from explainode.registry.build import check_parameters
from explainode.registry.composing import plain
from explainode.report.picks import worst_images
from explainode.runs.directory import RunDirectory
from explainode.sharing import SharedResults


class Benchmark:
    """Networks, explainers, metrics and images, and what becomes of their cells.

    Attributes:
        networks: by the name in tables; settings: the composed ones, plain.
        indices, accuracy: the chosen images, and with only_correct what `images.correct_images` says of the networks.
        missing, faults: what was not measured so far, and the exceptions that nobody expected.
    """

    def __init__(self, settings: dict[str, Any], networks: dict[str, Any], facts: dict[str, Any], data: Any) -> None:
        self.settings, self.data = settings, data
        self.evaluation = settings["evaluation"]
        self.networks = networks = in_memory_order(networks, self.evaluation)
        self.folder = RunDirectory(Path(settings["output_dir"]))
        _check_folder(self.folder.path)
        self.device = choose_device(self.evaluation["device"])
        self.explainers, self.metrics = many(settings, "explainer"), many(settings, "metric")
        self.indices, self.length = select_images(self.evaluation, data)
        self.accuracy: dict[str, dict[int, float]] = {}
        if self.evaluation["only_correct"]:
            self.indices, self.accuracy = correct_images(self.evaluation, networks, data, self.device)
        self.panel = choose_panel(self.indices, self.evaluation["panel"])
        self.missing: list[Missing] = []
        self.faults: list[Exception] = []
        content = self._look_at_data()
        self.protocol = self._protocol(facts, content)
        self._fitted: dict[tuple[str, str], Any] = {}

    @classmethod
    def build(cls, config: DictConfig) -> Benchmark:
        """The benchmark of a composed configuration.

        Raises:
            UserError: for settings that do not fit, or networks, weights or data that are not there.
        """
        data = build_data(config)
        count_classes(config, data)
        settings = plain(config)
        models = settings["models"]
        if (
            settings["data"].get("num_classes") is None
        ):  # pictures without labels: the networks say how many classes they know
            counts = [fill_classes(model) for model in models.values()]
            settings["data"]["num_classes"] = next((count for count in counts if count is not None), None)
        check_parameters({key: settings[key] for key in ("data", "models", "explainer", "metric")})
        check_weights(models)
        networks = {name: build_network(model).eval() for name, model in models.items()}
        facts = {name: without_weights(model) for name, model in models.items()}
        for label, folder in run_folders(config.runs).items():
            for variant, (model, network) in trained_networks(folder).items():
                networks[f"{label}/{variant}"], facts[f"{label}/{variant}"] = network, without_weights(model)
        for name, network in networks.items():
            facts[name]["weights"] = f"sha256 {network_digest(network)}"
        return cls(settings, networks, facts, data)

    def _look_at_data(self) -> str:
        """What the chosen images are, as a hash; metrics that need what they do not have are left out and named.

        Raises:
            UserError: if no metric is left, or too many files cannot be read.
        """
        reasons: dict[str, str] = {}

        def tensors() -> Iterator[tuple[str, torch.Tensor]]:
            for batch in self.data.batches(
                self.evaluation["split"], self.indices, 1
            ):  # one by one: no batch size changes the hash
                for name, metric in self.metrics.items():
                    if name not in reasons and (reason := missing_for(name, metric, batch)) is not None:
                        reasons[name] = reason
                known = batch.known()
                yield from (("id", batch.sample_id), ("image", batch.image), ("label", known.pop("label")))
                yield from (("box", box) for box in known.pop("boxes", ()))
                yield from known.items()

        content = digest(tensors())
        self.data.check_skipped()
        self.missing += [Missing("", "", name, "refused", reason) for name, reason in reasons.items()]
        self.metrics = {name: metric for name, metric in self.metrics.items() if name not in reasons}
        if not self.metrics:
            raise UserError(f"none of the metrics can be measured on this data: {'; '.join(reasons.values())}")
        return content

    def _protocol(self, networks: dict[str, Any], content: str) -> Protocol:

        evaluation = self.evaluation
        learning = {
            name: {"fit_images": evaluation["fit_images"]}
            for name, explainer in self.explainers.items()
            if explainer.learns
        }
        common = {key: evaluation[key] for key in ("split", "noise", "seed", "only_correct", "panel")}
        chosen = digest([("indices", _as_tensor(self.indices))])
        facts = {
            "evaluation": common | {"images": f"{len(self.indices)} images ({chosen})"},
            "data": {key: value for key, value in self.settings["data"].items() if key not in PARTIAL}
            | {CONTENT: content},
            "models": networks,
            "explainer": {name: self.settings["explainer"][name] | learning.get(name, {}) for name in self.explainers},
            "metric": {
                name: self.settings["metric"][name] | {"protocol": f"{metric.protocol}#{metric.protocol_hash}"}
                for name, metric in self.metrics.items()
            },
        }
        return Protocol(_plain(facts))

    def run(self) -> bool:
        """Work through the cells that are not there and put all of them together; True if the user interrupted.

        Raises:
            UserError: if the folder holds cells of another protocol, or no cell at all can be measured.
            KeyboardInterrupt: if the user interrupted before there was a cell.
            Exception: the first that nobody expected, if there is no cell.
        """
        with Cells(self.folder.path / "cells") as cells:
            cells.check(self.protocol)
            self.write_settings()
            interrupted = self.work(cells)
            if not cells.parts:
                if interrupted:
                    raise KeyboardInterrupt
                if self.faults:
                    raise self.faults[0]
                reasons = dict.fromkeys(missing.reason for missing in self.missing)
                raise UserError(f"nothing could be measured: {'; '.join(reasons)}")
            self.write_results(cells, draw=not interrupted)
        return interrupted

    def write_settings(self) -> None:
        """`config.yaml`, with what earlier commands measured in this folder; class names for captions."""
        path = self.folder.path
        merged = dict(self.settings)
        if (path / "config.yaml").is_file():
            earlier = self.folder.read_config()
            for group in ("models", "explainer", "metric"):
                merged[group] = {**(earlier.get(group) or {}), **self.settings[group]}
            merged["runs"] = list(dict.fromkeys([*(earlier.get("runs") or []), *listed(self.settings["runs"])]))
        self.folder.write_config(merged)
        if self.data.class_names:
            self.folder.write_class_names(self.data.class_names)

    def work(self, cells: Cells) -> bool:
        """Measure every cell that is not there; True if the user interrupted."""
        grid = Grid(list(self.networks), list(self.explainers))
        todo: dict[tuple[str, str], list[str]] = {}
        for key in grid.cells:
            todo[key] = [name for name in self.metrics if name not in cells.metrics(*key)]
            if not todo[key]:
                grid.keep(key, cells.seconds(*key))
        try:
            with grid, _terminable():
                for model, network in self.networks.items():
                    batches = -(-len(self.indices) // self.evaluation["batch_size"])
                    kept = SharedResults(batches)
                    for explainer in self.explainers:
                        if todo[model, explainer]:
                            network.to(self.device)
                            self._cell(cells, grid, kept, (model, explainer), todo[model, explainer])
                    network.cpu()
        except KeyboardInterrupt:
            return True
        return False

    def _cell(self, cells: Cells, grid: Grid, kept: SharedResults, key: tuple[str, str], names: list[str]) -> None:
        """Measure one cell and write it; what goes wrong inside it is noted."""
        model, explainer = key
        failed: list[str] = []

        def note(_: str, metric: str, error: Exception) -> None:
            failed.append(metric)
            self._note(Missing.because(error, model, explainer, metric), error)

        grid.start(key)
        found = None
        try:
            found = self._evaluate(
                key, {name: self.metrics[name] for name in names}, self.indices, self.panel, grid, note, kept
            )
        except Exception as error:  # the other cells go on; it is listed, and raised at the end unless it is the user's
            self._note(Missing.because(error, model, explainer), error)
        self.data.check_skipped()
        measured = [name for name in names if name not in failed]
        if found is None or not measured:
            grid.finish("missing")
            self._write_missing()
            return
        seconds = grid.finish("done")
        cells.write(model, explainer, found, self.protocol.of(model, explainer, measured), seconds, self._about())
        self.folder.write_results(found)
        if failed:
            self._write_missing()

    def _evaluate(
        self,
        key: tuple[str, str],
        metrics: Mapping[str, Any],
        images: list[int],
        panel: list[int],
        progress: Any,
        failed: Any = None,
        kept: SharedResults | None = None,
    ) -> Results:
        """What `evaluate` finds of one cell; an explainer that learns is fitted first."""
        model, explainer = key
        settings, network = self.evaluation, self.networks[model]
        if key not in self._fitted:
            mine = {explainer: self.explainers[explainer]}
            self._fitted[key] = fit_explainers(mine, network, self.data, settings, self.folder, model)[explainer]
        return evaluate(
            network,
            {explainer: self._fitted[key]},
            metrics,
            self.data.batches(settings["split"], images, settings["batch_size"]),
            n=self.length,
            name=model,
            split=settings["split"],
            noise=settings["noise"],
            seed=settings["seed"],
            chunk_size=settings["chunk_size"],
            panel=panel,
            total=len(images),
            progress=progress,
            correct=self.accuracy.get(model),
            kept=kept,
            failed=failed,
        )

    def _note(self, missing: Missing, error: Exception) -> None:
        self.missing.append(missing)
        if missing.kind == "failed":
            self.faults.append(error)

    def _about(self) -> dict[str, Any]:
        from explainode import __version__

        return {"explainode": __version__, "torch": torch.__version__, "device": str(self.device)}

    # ---- what is written at the end

    def write_results(self, cells: Cells, draw: bool) -> None:
        """The tables of all whole cells, in the order of the settings; their maps, with `draw` also of the images explained worst."""
        config = self.folder.read_config()
        rank = (
            {name: k for k, name in enumerate(self.networks)},
            {name: k for k, name in enumerate(config["explainer"])},
        )
        order = sorted(
            cells.parts,
            key=lambda key: tuple(place.get(name, len(place)) for place, name in zip(rank, key, strict=True)),
        )
        merged, seen = Results(), set()
        with Heartbeat("putting the cells together"):
            for key in order:
                found = cells.read(*key)
                rows = [
                    row for row in found.rows if (row.model, row.explainer, row.metric) not in seen
                ]  # a network's accuracy is in each
                seen |= {(row.model, row.explainer, row.metric) for row in rows}
                merged.extend(replace(found, rows=rows, maps=[]))
            merged.warnings += sentences(self._write_missing())
            write_tables(self.folder, merged)
        self._write_maps(cells, order, merged, draw)

    def _write_maps(self, cells: Cells, order: list[tuple[str, str]], merged: Results, draw: bool) -> None:
        """Each cell's maps of the panel; and, where all cells can be explained again, of the images that turned out to be explained worst."""
        mine = all(model in self.networks and explainer in self.explainers for model, explainer in order)
        worst = [sample for sample in worst_images(merged) if sample not in self.panel] if draw and mine else []
        there = {(maps.model, maps.explainer): maps.sample_id.tolist() for maps in self.folder.read_results().maps}
        with Heartbeat("drawing the images that are explained worst") as progress:
            for key in order:
                maps = cells.read(*key).maps[0]
                if there.get(key) == [*maps.sample_id.tolist(), *worst]:
                    continue
                if not worst:
                    for file in cells.map_files(*key):
                        replace_file(self.folder.path / "explanations" / file.name, file.read_bytes())
                    continue
                self.networks[key[0]].to(self.device)
                more = self._evaluate(key, {}, worst, worst, progress).maps[0]
                both = concatenate_maps([maps, more], [*maps.sample_id.tolist(), *worst])
                self.folder.write_maps(replace(both, added=len(worst)), self.evaluation["split"])

    def _write_missing(self) -> list[Missing]:
        """`missing.csv`: what is missing now, and what earlier commands found missing in cells that this one does not ask for."""
        names = (self.networks, self.explainers, self.settings["metric"])

        def asked(missing: Missing) -> bool:
            subject = (missing.model, missing.explainer, missing.metric)
            return all(not name or name in known for name, known in zip(subject, names, strict=True))

        rows = [*(missing for missing in read_missing(self.folder.path) if not asked(missing)), *self.missing]
        write_missing(self.folder.path, rows)
        return rows


@contextmanager
def _terminable() -> Iterator[None]:
    """Context: SIGTERM, which schedulers send some time before they kill, interrupts as Ctrl-C does."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # signals belong to the main one
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_folder(path: Path) -> None:
    """Refuse a folder in which another verb left its results."""
    if (path / "metrics.csv").is_file() and not (path / "cells").is_dir():
        raise UserError(f"{path} holds another run; name another folder with run_dir=...")


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    """As JSON reads it back, so that what was stored and what is asked for can be compared."""
    return json.loads(json.dumps(facts, default=str))


def _as_tensor(numbers: Sequence[int]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64)
