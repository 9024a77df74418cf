"""A run directory: where every verb leaves its configuration, numbers, curves and maps, and where every report reads them."""

from __future__ import annotations

import csv
import datetime
import glob
import io
import os
import shlex
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import yaml

from explainode.errors import UserError
from explainode.files import append_lines, remove_parts, replace_file, told_in_one_sentence
from explainode.metrics.results import Curve, Key, Maps, Results, Row
from explainode.plain_yaml import read_yaml
from explainode.runs.legacy import control_of, role_of

ROW_COLUMNS = (
    "epoch", "split", "model", "explainer", "metric", "value", "low", "high", "n", "excluded", "seconds", "higher_is_better", "protocol", "role", "control",
)  # fmt: skip
EARLIER_ROW_COLUMNS = ROW_COLUMNS[:-2]  # of the first version
VALUE_COLUMNS = ("epoch", "split", "model", "explainer", "metric", "sample_id", "value")
CURVE_COLUMNS = ("epoch", "split", "model", "explainer", "metric", "x", "mean", "low", "high", "x_label", "y_label")
MAX_MAPS = 512 << 20  # bytes of one file of maps, unpacked
RUN_TOKEN = "wandb-data/run-token.txt"  # of which the ids of W&B's runs are made
Place = tuple[int, str]  # epoch and split of a measurement
DIRECTIONS = {"": None, "True": True, "False": False}


def versions(seed: int | None = None) -> dict[str, str]:
    """What produced a run: time, command line, seed, versions, and the commit of this package where it lies in a git checkout."""
    facts = {
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seed": "none" if seed is None else str(seed),
        "python": sys.version.split()[0],
    }
    for package in ("explainode", "torch", "torchvision", "lightning", "numpy"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed as a package"
    commit = _commit(Path(__file__).resolve().parent)
    if commit:
        facts["commit"] = commit
    return facts


def _commit(folder: Path) -> str | None:
    """The commit that this very file belongs to, and whether tracked files were changed since; None outside a checkout or without git."""
    git = ["git", "-C", str(folder)]
    try:
        if subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, timeout=10).returncode:
            return None  # installed into an environment that happens to lie inside somebody else's checkout
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("+ (changed since)" if changed.stdout.strip() else "")


def final(results: Results) -> Results:
    """The last measurement of each model: the test rows where there are any, else those of another split; of several epochs the one written last.

    Not that of the largest epoch: a training that goes on from an early checkpoint may end before the epoch at which it was measured once.
    """
    splits = {row.split for row in results.rows}
    split = "test" if "test" in splits else max(splits, default="")
    rows = [row for row in results.rows if row.split == split]
    last = {row.model: row.epoch for row in rows}
    return replace(results, rows=[row for row in rows if row.epoch == last[row.model]])


class RunDirectory:
    """The files of one run.

    `config.yaml`, `versions.yaml`, `classes.txt`, `metrics.csv`, `per_image.csv`, `curves.csv`, `warnings.txt`, `recipes.yaml` and
    `explanations/epoch=003__split=S__model=M__explainer=E.npz`; `learned/M__E.pt` where an explainer learned. Nothing is created
    before the first write, and a failed write leaves what was there. The tables only grow; where a resumed run repeats an epoch, the later lines count.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """`config.yaml`, and `versions.yaml` with the command line that brought it about.

        Raises:
            UserError: if the folder cannot be made or written, or a value is none that YAML knows.
        """
        plain = _plain(config)
        remove_parts(self.path)  # of processes that were killed while they wrote
        replace_file(
            self.path / "config.yaml", yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120).encode()
        )
        facts = versions(plain.get("seed") if isinstance(plain.get("seed"), int) else None)
        replace_file(
            self.path / "versions.yaml", yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=1000).encode()
        )

    def read_config(self) -> dict[str, Any]:
        """The configuration as plain values.

        Raises:
            UserError: if there is none, or it is no YAML mapping.
        """
        return self._read_yaml("config.yaml")

    def read_versions(self) -> dict[str, Any]:
        """What produced the run; empty where nothing was recorded."""
        return self._read_yaml("versions.yaml") if (self.path / "versions.yaml").is_file() else {}

    def begin_anew(self) -> None:
        """Forget what an earlier start left that nothing goes on with: the token by which W&B would draw both as one run."""
        with told_in_one_sentence(self.path / RUN_TOKEN):
            (self.path / RUN_TOKEN).unlink(missing_ok=True)

    def write_class_names(self, names: Sequence[str]) -> None:
        """`classes.txt`, one name a line, for captions."""
        replace_file(self.path / "classes.txt", "".join(f"{' '.join(str(name).split())}\n" for name in names).encode())

    def read_class_names(self) -> list[str]:
        """The names of the classes; empty where nothing was recorded.

        Raises:
            UserError: if they are no text.
        """
        path = self.path / "classes.txt"
        if not path.is_file():
            return []
        try:
            return path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is damaged ({error}); restore it, or remove it to go on without names") from error

    def write_results(self, results: Results) -> None:
        """Add what an evaluation found. metrics.csv comes last: what it names is there.

        Raises:
            UserError: if something cannot be written; earlier rows and maps are intact then.
            ValueError: if a model has values, curves or maps but no row, which alone says epoch and split.
        """
        place = {row.model: (row.epoch, row.split) for row in results.rows}
        owners = {key[0] for key in (*results.per_image, *results.curves)} | {maps.model for maps in results.maps}
        if owners - place.keys():
            raise ValueError(f"results hold values of {', '.join(sorted(owners - place.keys()))}, but no row")
        for maps in results.maps:
            self.write_maps(maps, place[maps.model][1])
        values = (
            (*place[key[0]], *key, sample, float(value))
            for key, of_key in results.per_image.items()
            for sample, value in of_key.items()
        )
        self._append("per_image.csv", VALUE_COLUMNS, values)
        points = (
            (*place[key[0]], *key, *(float(v) for v in point), curve.x_label, curve.y_label)
            for key, curve in results.curves.items()
            for point in zip(curve.x, curve.mean, curve.low, curve.high, strict=True)
        )
        self._append("curves.csv", CURVE_COLUMNS, points)
        self.write_warnings(results.warnings)
        if results.recipes:
            replace_file(
                self.path / "recipes.yaml",
                yaml.safe_dump(_plain(results.recipes), sort_keys=False, allow_unicode=True, width=1000).encode(),
            )
        self._bring_up_to_date()
        self._append("metrics.csv", ROW_COLUMNS, (_cells(row) for row in results.rows))

    def _bring_up_to_date(self) -> None:
        """Give a table of the first version, which goes on, the columns that it lacks."""
        header = next(_whole_lines(self.path / "metrics.csv"), "").rstrip()
        if header == ",".join(EARLIER_ROW_COLUMNS):
            rows = list(self._read("metrics.csv", ROW_COLUMNS, _row, EARLIER_ROW_COLUMNS))
            replace_file(self.path / "metrics.csv", _table(ROW_COLUMNS, map(_cells, rows)).encode())

    def write_maps(self, maps: Maps, split: str) -> None:
        """The maps of one model and explainer, in the place of those of the same epoch.

        Raises:
            UserError: if the file cannot be written.
        """
        replace_file(self._map_path(maps, split), _pack(maps))

    def write_warnings(self, warnings: Iterable[str]) -> None:
        """Add sentences to warnings.txt, each once."""
        known = set(self.read_warnings())
        new = dict.fromkeys(" ".join(text.split()) for text in warnings)
        append_lines(self.path / "warnings.txt", "", "".join(f"{text}\n" for text in new if text not in known))

    def read_warnings(self) -> list[str]:
        """The sentences of warnings.txt."""
        return [line.rstrip("\n") for line in _whole_lines(self.path / "warnings.txt")]

    def read_rows(self) -> list[Row]:
        """All rows of all epochs; empty if nothing was written yet.

        Raises:
            UserError: if metrics.csv is damaged, with the line.
        """
        rows: dict[tuple[Any, ...], Row] = {}
        for row in self._read("metrics.csv", ROW_COLUMNS, _row, EARLIER_ROW_COLUMNS):
            key = (row.epoch, row.split, row.model, row.explainer, row.metric)
            rows.pop(key, None)  # so that the last written stands last
            rows[key] = row
        return list(rows.values())

    def read_results(self, at: Mapping[str, Place] | None = None) -> Results:
        """All rows of all epochs; values per image, curves and maps of what `final` picks. Empty if nothing was written yet.

        Args:
            at: {model: (epoch, split)}, which measurement to read of which models, instead; then the rows are those, too.

        Raises:
            UserError: if a file is damaged, with its name and line.
        """
        results = Results(rows=self.read_rows(), warnings=self.read_warnings())
        if (self.path / "recipes.yaml").is_file():
            results.recipes = {str(model): str(recipe) for model, recipe in self._read_yaml("recipes.yaml").items()}
        if at is not None:
            results.rows = [row for row in results.rows if at.get(row.model) == (row.epoch, row.split)]
        last = {row.model: (str(row.epoch), row.split) for row in (final(results) if at is None else results).rows}
        values = self._read(
            "per_image.csv", VALUE_COLUMNS, lambda c: (tuple(c[2:5]), tuple(c[:2]), int(c[5]), float(c[6]))
        )
        for key, place, sample, value in values:
            if last.get(key[0]) == place:
                results.per_image.setdefault(key, {})[sample] = value
        results.curves = self._read_curves(last)
        controls = results.controls
        maps = self._read_maps(last, dict.fromkeys(row.explainer for row in results.rows))
        results.maps = [replace(one, control=controls.get(one.explainer, "")) for one in maps]
        return results

    def _read_curves(self, last: Mapping[str, tuple[str, str]]) -> dict[Key, Curve]:
        points: dict[Key, dict[float, tuple[float, ...]]] = {}
        labels: dict[Key, tuple[str, str]] = {}
        read = self._read(
            "curves.csv",
            CURVE_COLUMNS,
            lambda c: (tuple(c[2:5]), tuple(c[:2]), tuple(map(float, c[5:9])), tuple(c[9:])),
        )
        for key, place, point, names in read:
            if last.get(key[0]) == place:
                labels[key] = names
                points.setdefault(key, {})[point[0]] = point
        columns = {key: np.array(list(of_key.values()), dtype=np.float64).T for key, of_key in points.items()}
        return {key: Curve(c[0], c[1], c[2], c[3], *labels[key]) for key, c in columns.items()}

    def _read_maps(self, last: Mapping[str, tuple[str, str]], explainers: Iterable[str]) -> list[Maps]:
        folder = self.path / "explanations"
        names = [_map_prefix(int(epoch), split, model) for model, (epoch, split) in last.items()]
        maps = [_unpack(path) for name in names for path in sorted(folder.glob(f"{glob.escape(name)}*.npz"))]
        order = {explainer: i for i, explainer in enumerate(explainers)}
        return sorted(maps, key=lambda m: order.get(m.explainer, len(order)))

    def learned_path(self, model: str, explainer: str) -> Path:
        """Where lies what an explainer learned of a model."""
        return self.path / "learned" / f"{file_part(model)}__{file_part(explainer)}.pt"

    def _map_path(self, maps: Maps, split: str) -> Path:
        name = f"{_map_prefix(maps.epoch, split, maps.model)}{file_part(maps.explainer)}.npz"
        if len(name) > 200:
            raise UserError(
                f"the names {maps.model!r} and {maps.explainer!r} are too long for a file name; choose shorter ones"
            )
        return self.path / "explanations" / name

    def _append(self, name: str, columns: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
        header = _table(columns, ())
        append_lines(self.path / name, header, _table(columns, lines).removeprefix(header))

    def _read(self, name: str, columns: Sequence[str], parse: Any, earlier: Sequence[str] = ()) -> Iterator[Any]:
        path = self.path / name
        reader = csv.reader(_whole_lines(path))
        header = next(reader, list(columns))
        if earlier and header == list(earlier):
            columns = earlier
        if header != list(columns):
            raise UserError(
                f"{path} has the columns {','.join(header)[:200]}, not {','.join(columns)}; it was written by something else"
            )
        for cells in reader:
            try:
                if len(cells) != len(columns):
                    raise ValueError(f"{len(cells)} cells instead of {len(columns)}")
                yield parse(cells)
            except (ValueError, KeyError) as error:
                raise UserError(
                    f"{path}, line {reader.line_num} is damaged ({error}); remove that line and read again"
                ) from error

    def _read_yaml(self, name: str) -> dict[str, Any]:
        path = self.path / name
        if not path.is_file():
            raise UserError(
                f"{self.path} is not a run directory (it has no {name}); runs are under runs/<name>/<run id>"
            )
        content = read_yaml(path)
        if not isinstance(content, dict):
            raise UserError(
                f"{path} is damaged (a mapping was expected, not {type(content).__name__}); restore it or run again"
            )
        return content


def _table(columns: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *([_one_line(cell) for cell in line] for line in lines)])
    return text.getvalue()


def _map_prefix(epoch: int, split: str, model: str) -> str:
    return f"epoch={epoch:03d}__split={file_part(split)}__model={file_part(model)}__explainer="


def file_part(name: str) -> str:
    """A name as a part of a file name."""
    return quote(name, safe=" =+@")


def check_name(name: Any, what: str) -> str:
    """A name that may be a part of a path: of a variant, of a checkpoint.

    Raises:
        UserError: for anything else, such as "../up".
    """
    text = str(name)
    if text in ("", ".", "..") or len(text) > 100 or any(c in "/\\" or not c.isprintable() for c in text):
        raise UserError(
            f"{what} is called {text[:120]!r}, which is no name: up to 100 printable characters without / and \\"
        )
    return text


def _cells(row: Row) -> tuple[Any, ...]:
    numbers = (
        float(row.value),
        float(row.low),
        float(row.high),
        int(row.n),
        int(row.excluded),
        round(float(row.seconds), 4),
    )
    direction = "" if row.higher_is_better is None else str(bool(row.higher_is_better))
    names = (row.epoch, row.split, row.model, row.explainer, row.metric)
    return (*names, *numbers, direction, row.protocol, row.role, row.control)


def _row(c: Sequence[str]) -> Row:
    numbers = dict(zip(("value", "low", "high"), map(float, c[5:8]), strict=True))
    role, control = c[13:] if len(c) > 13 else (role_of(c[12]), control_of(c[3]))
    return Row(
        epoch=int(c[0]),
        split=c[1],
        model=c[2],
        explainer=c[3],
        metric=c[4],
        **numbers,
        n=int(c[8]),
        excluded=int(c[9]),
        seconds=float(c[10]),
        higher_is_better=DIRECTIONS[c[11]],
        protocol=c[12],
        role=role,
        control=control,
    )


def _one_line(cell: Any) -> Any:
    """Text without line breaks: a table's line is its unit of writing."""
    return " ".join(cell.splitlines()) if isinstance(cell, str) else cell


def _whole_lines(path: Path) -> Iterator[str]:
    """The lines of a text file, without what a killed process left of a last one; none if there is no file."""
    if path.is_file():
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            yield from (line for line in file if line.endswith("\n"))


def _plain(value: Any) -> Any:
    """Mappings, lists and scalars that YAML's safe loader reads back."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise UserError(f"a configuration holds plain values only, got {type(value).__name__} ({str(value)[:80]})")


def _pack(maps: Maps) -> bytes:
    """The maps as compressed npz: float16 mantissas with one power of two per image, so that neither tiny nor huge maps are lost."""
    attribution = np.asarray(maps.attribution, dtype=np.float32)
    with np.errstate(invalid="ignore"):
        peak = (
            np.where(np.isfinite(attribution), np.abs(attribution), 0).reshape(len(attribution), -1).max(1, initial=0)
        )
    exponent = np.where(peak > 0, np.frexp(peak)[1] - 1, 0).astype(np.int32)
    fields: dict[str, Any] = {
        "model": np.array(maps.model),
        "explainer": np.array(maps.explainer),
        "epoch": np.array(maps.epoch),
        "image": maps.image.astype(np.uint8),
        "attribution": np.ldexp(attribution, -exponent[:, None, None, None]).astype(np.float16),
        "exponent": exponent,
        "sample_id": maps.sample_id,
        "label": maps.label,
        "target": maps.target,
        "probability": maps.probability,
        "added": np.array(maps.added),
    }
    if maps.mask is not None:
        fields["mask"] = maps.mask.astype(np.int8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **fields)
    return buffer.getvalue()


def _unpack(path: Path) -> Maps:
    try:
        with zipfile.ZipFile(path) as archive:
            held = sum(member.file_size for member in archive.infolist())
        if held > MAX_MAPS:
            raise ValueError(f"it would unpack to {held >> 20} MiB, and no maps have more than {MAX_MAPS >> 20}")
        with np.load(path, allow_pickle=False) as file:
            fields: dict[str, Any] = {name: file[name] for name in file.files}
        _check_maps(fields)
        fields["attribution"] = np.ldexp(
            fields["attribution"].astype(np.float32), fields.pop("exponent")[:, None, None, None]
        )
        fields |= {"model": str(fields["model"]), "explainer": str(fields["explainer"]), "epoch": int(fields["epoch"])}
        fields["added"] = int(fields.get("added", 0))  # absent in runs of earlier versions
        return Maps(**fields)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        IndexError,
        AttributeError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is damaged ({reason}); remove it or evaluate again") from error


def _check_maps(fields: Mapping[str, Any]) -> None:
    """Hold what a file of maps holds against what `_pack` writes.

    Raises:
        ValueError: naming the array.
    """
    n = len(fields["sample_id"])
    height, width = fields["image"].shape[1:3] if fields["image"].ndim == 4 else (0, 0)
    shapes = {
        "image": (n, height, width, 3), "attribution": (n, *fields["attribution"].shape[1:4]), "sample_id": (n,), "exponent": (n,), "label": (n,),
        "target": (n,), "probability": (n,),
    }  # fmt: skip
    if "mask" in fields:
        shapes["mask"] = (n, height, width)
    for name, shape in shapes.items():
        if (
            fields[name].shape != shape
            or fields[name].dtype.kind not in "iuf"
            or (name == "attribution" and len(shape) != 4)
        ):
            raise ValueError(f"{name} has the shape {fields[name].shape} and type {fields[name].dtype}")


def run_config(folder: Path) -> dict[str, Any]:
    """The configuration of a run directory.

    Raises:
        UserError: if the folder is not a run directory.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is not a run directory (it has no config.yaml); runs are under runs/<name>/<run id>")
    return RunDirectory(folder).read_config()
