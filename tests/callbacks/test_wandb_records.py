"""W&B's log files: read and laid out byte for byte as W&B does, and mended where a run directory was moved."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from explainode.callbacks.loggers import wandb_logger
from explainode.callbacks.wandb_records import HEADER, inspect, lay_out, read_records, relocate_in_place
from explainode.cli import sync
from explainode.errors import UserError


def settled(path, folder):
    """Wait for the run's last record: `wandb.finish` returns before it is on the disk."""
    for _ in range(100):
        with suppress(UserError):  # nothing is there yet
            if inspect(path, folder).finished:
                return
        time.sleep(0.1)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with records longer than a block, an artifact and a table."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    folder = tmp_path / "study" / "run"
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_bytes(b"w" * 5000)
    logger = wandb_logger(str(folder), project="p", entity="e", name="net", id="abc", mode="offline", code=False)
    for step in range(30):
        logger.log_metrics({"epoch": step, "loss": 0.5, "long": "x" * (3000 * step)}, step=step)
    artifact = wandb.Artifact("model-abc", "model")
    artifact.add_file(str(folder / "weights.bin"))
    logger.experiment.log_artifact(artifact)
    wandb.finish()
    settled(log_file(folder), folder)
    return folder


def log_file(folder):
    (path,) = folder.glob("wandb/offline-run-*/run-abc.wandb")
    return path


def test_the_layout_is_wandbs_own(run):
    content = log_file(run).read_bytes()
    found = list(read_records(log_file(run)))
    assert max(map(len, found)) > 2 * 32768  # of first, middle and last pieces
    assert lay_out(content[:HEADER], iter(found)) == content


def test_what_a_run_says_of_itself(run):
    found = inspect(log_file(run), run)
    assert (found.run_id, found.name, found.entity, found.project, found.group) == ("abc", "net", "e", "p", "study/run")
    assert found.history == 30 and found.finished and not found.moved and not found.missing
    assert list(found.files.values()) == [5000] and found.size > 5000 + log_file(run).stat().st_size


def test_a_copied_run_finds_its_artifacts_where_they_are_now(run, tmp_path):
    """W&B writes absolute places down: without the mend, an upload of the copy finds nothing."""
    moved = tmp_path / "elsewhere"
    shutil.move(run, moved)
    before = inspect(log_file(moved), moved)
    assert before.moved and all(moved in place.parents for place in before.files)
    records = list(read_records(log_file(moved)))
    relocate_in_place(log_file(moved), moved)
    after = inspect(log_file(moved), moved)
    assert not after.moved and after.files == before.files and after.history == 30
    changed = [a != b for a, b in zip(records, read_records(log_file(moved)), strict=True)]
    assert sum(changed) == 1  # the artifact's record, nothing else
    shutil.rmtree(moved / "wandb-data")
    assert len(inspect(log_file(moved), moved).missing) == 1


def test_a_killed_run_loses_its_last_record_only(run):
    path = log_file(run)
    whole = path.read_bytes()
    count = len(list(read_records(path)))
    for cut in (1, 5, 20):
        path.write_bytes(whole[:-cut])
        assert count - 3 <= len(list(read_records(path))) < count
        assert not inspect(path, run).finished


def test_a_damaged_or_foreign_file_is_named(run, tmp_path):
    path = log_file(run)
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged at byte"):
        list(read_records(path))
    path.write_bytes(b"hello")
    with pytest.raises(UserError, match="no W&B run file"):
        list(read_records(path))
    path.write_bytes(b"")
    with pytest.raises(UserError, match="no W&B run file"):
        inspect(path, run)
    path.write_bytes(bytes(content[:HEADER]))
    with pytest.raises(UserError, match="holds no run"):
        inspect(path, run)


# ---- a run that somebody sent: nothing outside of it is uploaded


def rewrite(run, change):
    """The log file with `change` applied to each record."""
    path, records = log_file(run), []
    for content in read_records(log_file(run)):
        record = Record.FromString(content)
        change(record)
        records.append(record.SerializeToString())
    path.write_bytes(lay_out(path.read_bytes()[:HEADER], records))
    return path


def artifact_from(place):
    def change(record):
        for entry in record.artifact.manifest.contents:
            entry.local_path = str(place)

    return change


def file_from(place):
    def change(record):
        for item in record.files.files:
            item.path = str(place)

    return change


@pytest.mark.parametrize("words", [["--dry-run"], []])
@pytest.mark.parametrize(
    "kind", ["absolute", "through wandb-data", "by dots", "a link", "a file record", "a manifest", "a linked file"]
)
def test_what_lies_outside_of_a_run_is_not_uploaded(run, tmp_path, monkeypatch, kind, words):
    monkeypatch.setattr(sync, "upload", lambda job: pytest.fail("uploaded"))
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    secret = tmp_path / "secret.txt"
    secret.write_text("hush")
    if kind == "absolute":
        rewrite(run, artifact_from(secret))
    elif kind == "through wandb-data":
        rewrite(run, artifact_from(f"{run}/wandb-data/../../../secret.txt"))
    elif kind == "by dots":
        rewrite(run, artifact_from(f"{run}/../../secret.txt"))
    elif kind == "a link":
        (run / "wandb-data" / "link").symlink_to(secret)
        rewrite(run, artifact_from(f"{run}/wandb-data/link"))
    elif kind == "a file record":
        rewrite(run, file_from("../../../../../secret.txt"))
    elif kind == "a manifest":
        rewrite(
            run,
            lambda record: (
                setattr(record.artifact.manifest, "manifest_file_path", str(secret))
                if record.HasField("artifact")
                else None
            ),
        )
    elif kind == "a linked file":
        (log_file(run).parent / "files" / "notes.txt").symlink_to(secret)
    with pytest.raises(UserError, match="outside of the run"):
        sync.run([str(run), *words])


def test_a_file_that_is_put_there_later_is_not_read(run, tmp_path):
    """Nothing lies at the recorded place now; what the uploader is told is a place in the run."""
    rewrite(run, artifact_from(tmp_path / "later.txt"))
    found = inspect(log_file(run), run)
    assert found.missing == [str(tmp_path / "later.txt")] and found.moved and not found.outside
    relocate_in_place(log_file(run), run)
    records = [Record.FromString(content) for content in read_records(log_file(run))]
    (place,) = {entry.local_path for record in records for entry in record.artifact.manifest.contents}
    assert place.startswith(f"{run}/wandb-data/")


def test_records_that_no_run_has_and_second_destinations_are_refused(run):
    def append(record):
        path = log_file(run)
        content = path.read_bytes()
        path.write_bytes(lay_out(content[:HEADER], [*read_records(path), record.SerializeToString()]))
        with pytest.raises(UserError, match="it is not uploaded"):
            inspect(path, run)
        path.write_bytes(content)

    for_board, elsewhere, artifact = Record(), Record(), Record()
    for_board.tbrecord.log_dir = "/etc"
    elsewhere.run.run_id, elsewhere.run.entity, elsewhere.run.project = "abc", "thief", "p"
    artifact.artifact.name, artifact.artifact.entity = "x", "thief"
    for record in (for_board, elsewhere, artifact):
        append(record)


def test_a_dry_run_lists_every_file_and_the_entity(run, capsys):
    assert sync.run([str(run), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert " to e/p (" in lines[0]
    found = inspect(log_file(run), run)
    listed = [line.split(" (")[0].strip() for line in lines[1:]]
    assert listed == [str(file.resolve().relative_to(run.resolve())) for file in found.sizes()]
    assert sum(int(line.split("(")[1].split()[0]) for line in lines[1:]) == found.size


def test_names_of_a_run_do_not_steer_the_terminal(run, capsys):
    rewrite(
        run,
        lambda record: (
            setattr(record.run, "display_name", "\x1b]0;owned\x07\x1b[2J") if record.HasField("run") else None
        ),
    )
    assert sync.run([str(run), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\x07" not in said and "owned" in said
