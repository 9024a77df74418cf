"""One run keeps one id, through requeues and copies; two runs never share one."""

import shutil

import pytest
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from explainode.callbacks.wandb_id import stable_id
from explainode.errors import UserError


def test_every_start_in_a_run_directory_has_the_same_id(tmp_path):
    first = stable_id(tmp_path / "run", "train", "net")
    assert first == stable_id(tmp_path / "run", "train", "net") and len(first) == 16
    shutil.copytree(tmp_path / "run", tmp_path / "elsewhere" / "run")
    assert first == stable_id(tmp_path / "elsewhere" / "run", "train", "net")


def test_variants_kinds_of_work_and_other_runs_have_others(tmp_path):
    """Also a run whose directory has the same name, as job 17 of another cluster has."""
    ids = {
        stable_id(tmp_path / a / "17", job, name)
        for a in "ab"
        for job in ("train", "evaluate")
        for name in ("net", "twin")
    }
    assert len(ids) == 8


def test_only_the_first_rank_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    stable_id(tmp_path / "run", "train")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        stable_id(tmp_path / "file" / "run", "train")
