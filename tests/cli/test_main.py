"""The console script's manners: verbs, exit statuses, one sentence for bad input, no traceback."""

import subprocess
import sys

import pytest

from explainode import __version__
from explainode.cli import main as door
from explainode.cli.completion import candidates
from explainode.errors import UserError
from explainode.jobs.pictures import class_index


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Run a command line in an empty folder; (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        status = door.main(list(words))
        out = capsys.readouterr()
        return status, out.out, out.err

    return run


def test_help_lists_every_verb(cli):
    status, out, _ = cli("--help")
    assert status == 0
    assert all(verb in out for verb in door.VERBS)


@pytest.mark.parametrize("verb", door.VERBS)
def test_every_verb_has_help(cli, verb):
    status, out, _ = cli(verb, "--help")
    assert status == 0
    assert f"explainode {verb}" in out


def test_version(cli):
    assert cli("--version")[:2] == (0, f"{__version__}\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "train"),
        (["train", "modle=resnet20"], "model"),
        (["train", "model=resnet21"], "resnet20"),
        (["train", "data.batch_size=abc"], "data.batch_size"),
        (["train", "evaluation.images=0:5,"], ""),
        (["evaluate", "run=nowhere"], "run directory"),
        (["evaluate", "data=cifar10", "data.root=nowhere", "model=resnet20"], "nowhere"),
        (["compare", "a"], "two runs"),
        (["compare", "a", "b"], "metrics.csv"),
        (["compare", "a", "b", "-o"], "-o needs a folder"),
        (["explain", "nothing.jpg"], "nothing.jpg"),
        (["explain", "--frobnicate"], "frobnicate"),
        (["list", "explainers"], "explainer"),
        (["completion", "fish"], "bash or zsh"),
        (["train", "--config-dir", "nowhere"], "nowhere"),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_sentence_and_status_2(cli, words, expected):
    status, _, err = cli(*words)
    assert status == 2, err
    assert expected in err
    assert "Traceback" not in err
    said = [
        line for line in err.splitlines() if line and not line.startswith("starting (")
    ]  # the heartbeat of a slow start
    assert len(said) == 1, err


def test_our_own_fault_is_status_1(cli, monkeypatch):
    monkeypatch.setattr(door, "run", lambda words: 1 / 0)
    status, _, err = cli("list")
    assert status == 1
    assert "ZeroDivisionError" in err and "--debug" in err and "Traceback" not in err


def test_debug_shows_the_traceback(cli):
    with pytest.raises(UserError):
        cli("list", "explainers", "--debug")


def test_a_user_error_inside_a_library_s_error_is_still_the_user_s(cli, monkeypatch):
    def fail(words):
        try:
            raise UserError("inner sentence")
        except UserError as error:
            raise RuntimeError("wrapped") from error

    monkeypatch.setattr(door, "run", fail)
    status, _, err = cli("list")
    assert (status, err) == (2, "explainode: inner sentence\n")


def test_list_shows_summary_and_source(cli):
    status, out, _ = cli("list", "explainer", "--json")
    assert status == 0
    assert '"name": "saliency"' in out and '"source"' in out
    assert "saliency" in cli("list", "explainer")[1]
    assert "explainer" in cli("list")[1]


def test_doctor_names_versions(cli):
    status, out, _ = cli("doctor")
    assert status == 0
    assert all(word in out for word in ("torch", "lightning", "bfloat16", "W&B", "disk"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("explainode tr", ["train"]),
        ("explainode list exp", ["explainer", "experiment"]),
        ("explainode train model=resnet2", ["model=resnet20"]),
        ("explainode train explainer=[sal", ["explainer=[saliency"]),
        ("explainode train explainer=[ig,sal", ["explainer=[ig,saliency"]),
        ("explainode train data=shapes data.batch_s", ["data.batch_size="]),
    ],
)
def test_completion(line, expected):
    found = candidates(line)
    assert all(any(word.startswith(want) for word in found) for want in expected), found


@pytest.mark.parametrize(
    ("word", "names", "expected"),
    [(None, None, None), ("3", None, 3), (3, None, 3), ("Cat", ["dog", "cat"], 1), ("0", ["a"], 0)],
)
def test_class_index(word, names, expected):
    assert class_index(word, 5, names) == expected


@pytest.mark.parametrize(("word", "expected"), [("5000", "0..9"), ("-1", "0..9"), ("tigre", "tiger")])
def test_class_out_of_range(word, expected):
    with pytest.raises(UserError, match=expected):
        class_index(word, 10, ["tiger", "cat"])


def test_import_is_light():
    code = "import sys, explainode; print('torch' in sys.modules, 'lightning' in sys.modules, 'hydra' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"] * 3
