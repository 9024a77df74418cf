"""A file is the old one or the new one: what happens when the disk, the caller or the user stops a write halfway."""

from __future__ import annotations

import errno
import os

import pytest

from explainode.files import replacing


def write(path, content):
    with replacing(path) as file:
        file.write(content)


def test_makes_folders_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a" / "b" / "report.html"
    write(path, b"one")
    write(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["report.html"]


def test_the_old_file_is_read_until_the_end(tmp_path):
    path = tmp_path / "metrics.csv"
    write(path, b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
        assert os.path.dirname(file.name) == str(tmp_path)  # one file system: renaming is atomic
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("failing", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt()])
def test_a_failure_keeps_the_old_file_and_passes_through(tmp_path, monkeypatch, failing, error):
    path = tmp_path / "metrics.csv"
    write(path, b"old")

    def fail(*_):
        raise error

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(type(error)):
        write(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["metrics.csv"]


def test_an_exception_of_the_caller_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="mine"), replacing(tmp_path / "new") as file:
        file.write(b"half")
        raise ValueError("mine")
    assert not os.listdir(tmp_path)


def test_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "config.yaml", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "config.yaml").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(("number", "passes"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_folder_that_cannot_be_flushed_is_no_failure_unless_the_disk_is_broken(tmp_path, monkeypatch, number, passes):
    real, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:  # the file's own comes first
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    if passes:
        write(tmp_path / "x", b"new")
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            write(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"  # it was in place already
