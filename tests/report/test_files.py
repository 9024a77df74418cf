"""What is on the disk survives a failed write: no space, no permission, a killed process."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from explainode.errors import UserError
from explainode.files import append_lines, replace_file


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_replacement_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    path = tmp_path / "metrics.csv"
    replace_file(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(
        UserError, match=r"cannot write .*metrics.csv: no space left on device; free some space or name another folder"
    ):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["metrics.csv"]


def test_a_file_in_the_way_of_a_folder_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write .*; free some space or name another folder") as caught:
        replace_file(tmp_path / "run" / "config.yaml", b"x")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_a_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="permission denied"):
            replace_file(tmp_path / "config.yaml", b"x")
    finally:
        tmp_path.chmod(0o700)


def test_append_begins_with_the_header_once(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    append_lines(path, "a,b\n", "1,2\n")
    append_lines(path, "a,b\n", "")
    append_lines(path, "a,b\n", "3,4\n5,6\n")
    assert path.read_text() == "a,b\n1,2\n3,4\n5,6\n"


def test_append_cuts_off_what_a_killed_process_left(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n3,")
    append_lines(path, "a,b\n", "5,6\n")
    assert path.read_text() == "a,b\n1,2\n5,6\n"
    path.write_text("a,")  # killed within the very first line
    append_lines(path, "a,b\n", "5,6\n")
    assert path.read_text() == "a,b\n5,6\n"


def test_append_finds_the_last_line_beyond_a_block(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a\n" + "x" * 200_000)
    append_lines(path, "a\n", "1\n")
    assert path.read_text() == "a\n1\n"


def test_a_disk_that_fills_in_the_middle_of_a_line_takes_nothing(tmp_path: Path) -> None:
    """The operating system itself stops the write halfway: a limit on the size of files acts like a full disk."""
    path = tmp_path / "table.csv"
    append_lines(path, "a,b\n", "1,2\n")
    before = path.read_text()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 3, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*table.csv: file too large"):
            append_lines(path, "a,b\n", "33,44\n" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == before
    append_lines(path, "a,b\n", "3,4\n")
    assert path.read_text() == before + "3,4\n"
