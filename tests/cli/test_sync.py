"""`explainode sync`: what it says beforehand, real uploads by `wandb sync` to a stand-in on this machine, and what fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import wandb

from explainode.callbacks.loggers import wandb_logger
from explainode.callbacks.wandb_records import inspect
from explainode.cli import sync
from explainode.cli.main import main
from explainode.errors import UserError


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """No login, and nothing of this process's environment changed afterwards."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DATA_DIR", "WANDB_BASE_URL", "NETRC", "WANDB_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def settled(path, folder):
    """Wait for the run's last record: `wandb.finish` returns before it is on the disk."""
    for _ in range(100):
        with suppress(UserError):  # nothing is there yet
            if inspect(path, folder).finished:
                return
        time.sleep(0.1)


@pytest.fixture
def record(tmp_path):
    """A function that records a small run offline."""

    def make(folder, run_id, lines=1):
        logger = wandb_logger(
            str(tmp_path / folder), project="p", name=f"study/{run_id}", id=run_id, mode="offline", code=False
        )
        for step in range(lines):
            logger.log_metrics({"loss": 1.0, "epoch": step}, step=step)
        wandb.finish()
        for path in (tmp_path / folder).glob("wandb/offline-run-*/run-*.wandb"):
            settled(path, tmp_path / folder)
        return tmp_path / folder

    return make


class StandIn(BaseHTTPRequestHandler):
    """Answers an upload as W&B's server does; refuses runs that it is told to refuse."""

    seen: list[str] = []
    refused: set[str] = set()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = json.loads(body) if self.path == "/graphql" else {}
        name = asked.get("query", "query -").split()[1].split("(")[0]
        variables = asked.get("variables") or {}
        answer: dict = {}
        status = 200
        if name == "RunResumeStatus":
            self.seen.append(variables["name"])
            if variables["name"] in self.refused:
                status, answer = 403, {"errors": [{"message": "permission denied"}]}
            else:
                answer = {"data": {"model": None}}
        elif name == "UpsertBucket":
            project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
            bucket = {
                "id": "x",
                "name": variables.get("name", "x"),
                "displayName": "d",
                "historyLineCount": 0,
                "project": project,
            }
            answer = {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        elif name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"http://{self.headers['Host']}/up"} for file in variables["files"]]
            answer = {"data": {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}}
        content = json.dumps(answer or {"data": {}}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_PUT = do_GET = do_POST

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """A stand-in for W&B's server on this machine."""
    StandIn.seen, StandIn.refused = [], set()
    running = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{running.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    StandIn.running = running
    yield StandIn
    running.shutdown()


def test_a_dry_run_says_what_it_would_do(record, capsys):
    """Nobody is logged in, and nothing is sent. A resumed run is one run of two parts; the earlier run comes first."""
    folder = record("runs/study/1", "late", lines=2)
    record("runs/study/1", "resumed", lines=3)
    record("runs/study/1", "resumed", lines=4)
    assert main(["sync", str(folder), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first, second = (line for line in lines if not line.startswith(" "))
    assert sum("run-resumed.wandb (" in line for line in lines) == 2
    assert first.startswith(
        "1. would upload study/late to your default entity/p (run late, train, group study/1, begun 20"
    )
    assert "1 part, 2 lines of numbers, 0." in first
    assert "study/resumed" in second and "2 parts, 7 lines of numbers" in second


@pytest.mark.slow
def test_uploads_in_order_once_and_says_what_failed(record, server, capsys, tmp_path):
    """Of a sweep that was copied elsewhere: three runs, one refused; the others are uploaded, and only it is tried again."""
    for number, name in enumerate(("zero", "one", "two")):
        record(f"multirun/study/7/{number}", name)
    shutil.move(tmp_path / "multirun", tmp_path / "copied")
    server.refused = {"one"}
    sweep = str(tmp_path / "copied" / "study" / "7")
    assert main(["sync", sweep]) == 1
    said = capsys.readouterr()
    assert "2 of 3 runs uploaded" in said.out
    assert "not uploaded: one of" in said.err and "permission denied" in said.err and "uploaded: zero" not in said.err
    assert list(dict.fromkeys(server.seen)) == ["zero", "one", "two"]
    server.refused, server.seen = set(), []
    assert main(["sync", sweep]) == 0
    assert set(server.seen) == {"one"}
    assert main(["sync", sweep]) == 0 and "uploaded already" in capsys.readouterr().out


ONLINE = """
import sys, time
from explainode.callbacks import loggers
loggers.END_SECONDS = 3.0
logger = loggers.wandb_logger(sys.argv[1], mode="online", id="abc", code=False)
logger.log_metrics({"epoch": 0, "loss": 1.0}, step=0)
assert not logger._offline
print("begun", flush=True)
sys.stdin.readline()
start = time.monotonic()
for step in range(1, 200):
    logger.log_metrics({"epoch": step, "loss": 1.0}, step=step)
assert time.monotonic() - start < 5, "logging waited"
loggers.finish()
"""


@pytest.mark.slow
def test_a_server_that_goes_away_holds_nobody_up(server, tmp_path):
    """The run goes on at its own pace, ends in bounded time with a sentence, and every line is in its folder."""
    child = subprocess.Popen(
        [sys.executable, "-c", ONLINE, str(tmp_path / "run")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert any("begun" in line for line in iter(child.stdout.readline, ""))
    server.running.shutdown()
    server.running.server_close()
    _, said = child.communicate("\n", timeout=60)
    assert child.returncode == 0, said
    assert "upload the rest later with `explainode sync --include-online" in said
    (path,) = (tmp_path / "run").glob("wandb/run-*/run-abc.wandb")
    assert inspect(path, tmp_path / "run").history == 200


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--dry-run"], "sync needs a run directory"),
        (["nowhere"], "there is no folder nowhere"),
        (["{empty}"], "holds no offline W&B run; train with"),
        (["{empty}", "--dryrun"], "got --dryrun"),
        (["{run}"], "nobody is logged in to W&B"),
    ],
)
def test_bad_input_is_one_sentence(record, tmp_path, capsys, words, sentence):
    (tmp_path / "empty").mkdir()
    run = record("run", "abc") if "{run}" in words else None
    assert main(["sync", *(word.format(empty=tmp_path / "empty", run=run) for word in words)]) == 2
    assert sentence in capsys.readouterr().err


def test_artifacts_that_are_gone_are_counted(record, tmp_path, monkeypatch):
    folder = record("run", "abc")
    (path,) = folder.glob("wandb/offline-run-*/run-abc.wandb")
    found = inspect(path, folder)
    found.missing.append("/gone/file")
    assert "1 file(s) of artifacts are not there any more, such as /gone/file" in sync.describe([(found, folder)])
