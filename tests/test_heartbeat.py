"""What is said while something takes its time."""

from __future__ import annotations

import time

import pytest

from explainode import heartbeat
from explainode.heartbeat import Heartbeat


def test_says_what_and_how_far(monkeypatch, capsys):
    monkeypatch.setattr(heartbeat, "EVERY", 0.05)
    with Heartbeat("explaining resnet20") as progress:
        time.sleep(0.15)
        progress("saliency", 8, 64)
        time.sleep(0.15)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "explaining resnet20 (0 s)"
    assert lines[-1] == "explaining resnet20, saliency done, 8/64 images (0 s)"


def test_is_silent_for_quick_work_and_ends_with_an_error(capsys):
    with pytest.raises(RuntimeError, match="no"), Heartbeat("starting"):
        raise RuntimeError("no")
    assert capsys.readouterr().err == ""
