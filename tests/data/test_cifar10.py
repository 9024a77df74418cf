"""CIFAR-10's folder: read right, checked, refused in a sentence, and never able to run code."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from explainode.data.cifar10 import CIFAR10Data, read_file, read_images
from explainode.errors import UserError


def pixels(n: int, seed: int) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3072), dtype=np.uint8), rng.integers(0, 10, n).tolist()


@pytest.fixture(params=[2, 4, 5], ids="protocol{}".format)
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A small set in torchvision's layout, 20 images a file."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for k, (name, _) in enumerate([*CIFAR10.train_list, *CIFAR10.test_list]):
        data, labels = pixels(20, k)
        content = {"batch_label": name, "labels": labels, "data": data, "filenames": [f"{i}.png" for i in range(20)]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=request.param))
    (folder / "batches.meta").write_bytes(
        pickle.dumps({"label_names": ["a"] * 10, "num_vis": 3072}, protocol=request.param)
    )
    return tmp_path


def accepted(root: Path, **options) -> CIFAR10Data:
    data = CIFAR10Data(root, verify=False, **{"val_size": 30, **options})
    with pytest.warns(UserWarning, match="data_batch_1 and 6 more differs from the official"):
        data.check()
    return data


def test_test_split_is_the_test_file(root: Path) -> None:
    dataset = accepted(root).dataset("test")
    data, labels = pixels(20, 5)
    batch = dataset.__getitems__([3, 0, 19])
    assert np.array_equal((batch.image * 255).numpy().round().astype(np.uint8).reshape(3, -1), data[[3, 0, 19]])
    assert torch.equal(batch.image, torch.from_numpy(data[[3, 0, 19]].reshape(3, 3, 32, 32)).float() / 255)
    assert batch.label.tolist() == [labels[3], labels[0], labels[19]] and batch.sample_id.tolist() == [3, 0, 19]


def test_train_and_val_share_the_training_images(root: Path) -> None:
    data = accepted(root)
    train, val = data.dataset("train"), data.dataset("val")
    assert (len(train), len(val)) == (70, 30)
    everything = np.concatenate([pixels(20, k)[0] for k in range(5)])
    rows = torch.cat([train.rows, val.rows])
    assert sorted(rows.tolist()) == list(range(100))
    assert np.array_equal((val[7].image[0] * 255).numpy().round().astype(np.uint8).ravel(), everything[val.rows[7]])
    again, other = accepted(root, seed=9), accepted(root, split_seed=1)
    assert torch.equal(again.dataset("val").rows, val.rows)  # the run's seed does not move the border
    assert not torch.equal(other.dataset("val").rows, val.rows)


def test_subset_and_validation_on_the_test_set(root: Path) -> None:
    data = accepted(root, train_size=12)
    assert len(data.dataset("train")) == 12
    assert not set(data.dataset("train").rows.tolist()) & set(data.dataset("val").rows.tolist())
    data = accepted(root, val_size=0)
    assert len(data.dataset("train")) == 100 and len(data.dataset("val")) == 20


def test_too_much_is_asked_for(root: Path) -> None:
    with pytest.raises(UserError, match=r"train_size=90 and data.val_size=30 do not fit into the 100"):
        accepted(root, train_size=90).dataset("train")


def test_changed_files_are_refused_with_the_way_to_accept_them(root: Path) -> None:
    with pytest.raises(
        UserError, match=r"data_batch_1 and 6 more differs from the official CIFAR-10.*data\.verify=false"
    ):
        CIFAR10Data(root).dataset("test")


def test_one_changed_file_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    folder = root / "cifar-10-batches-py"
    sums = {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name, _ in CIFAR10.train_list])
    monkeypatch.setattr(CIFAR10, "test_list", [[name, sums[name]] for name, _ in CIFAR10.test_list])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    assert len(CIFAR10Data(root, val_size=30).dataset("train")) == 70  # as official files are: no warning, no refusal
    flipped = bytearray((folder / "data_batch_3").read_bytes())
    flipped[5000] ^= 1
    (folder / "data_batch_3").write_bytes(flipped)
    with pytest.raises(UserError, match=r"data_batch_3 differs"):
        CIFAR10Data(root, val_size=30).dataset("train")


def test_missing_folder_and_file(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*nowhere/cifar-10-batches-py; .*data\.download=true"):
        CIFAR10Data(tmp_path / "nowhere").dataset("train")
    (root / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(UserError, match=r"data_batch_4.*incomplete.*data\.download=true"):
        CIFAR10Data(root, verify=False).dataset("train")


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


@pytest.mark.parametrize(
    "content", [Evil(), {"data": Evil(), "labels": []}, {"data": np.array([Evil()], dtype=object), "labels": [1]}]
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_no_code_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content, protocol: int) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(UserError, match=r"is not a file of CIFAR-10 .*mkdir is not part of an array"):
        read_file(tmp_path / "file")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        b"<html>",
        pickle.dumps([1]),
        pickle.dumps({"data": np.zeros((2, 3072)), "labels": [0, 0]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match="not a file of CIFAR-10"):
        read_images(tmp_path / "file")


def test_truncated_files_are_refused(root: Path, tmp_path: Path) -> None:
    whole = (root / "cifar-10-batches-py" / "test_batch").read_bytes()
    for length in (1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "torn").write_bytes(whole[:length])
        with pytest.raises(UserError, match="not a file of CIFAR-10"):
            read_images(tmp_path / "torn")


def test_pickle_of_python_2(tmp_path: Path) -> None:
    """The official files were written by Python 2: pixels are a byte string, names are those of numpy 1. Written here opcode by opcode."""
    data, _ = pixels(2, 0)

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR(K\x01(K\x02M\x00\x0ct"
        b"cnumpy\ndtype\n("
        + text(b"u1")
        + b"K\x00K\x01tR(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"I00\nT" + struct.pack("<i", data.size) + data.tobytes() + b"tb"
    )
    (tmp_path / "file").write_bytes(b"\x80\x02}(" + text(b"data") + array + text(b"labels") + b"](K\x03K\x07eu.")
    images, labels = read_images(tmp_path / "file")
    assert np.array_equal(images.reshape(2, -1), data) and labels.tolist() == [3, 7]


@pytest.mark.parametrize("options", [{"num_classes": 100}, {"val_size": -1}, {"train_size": 0}])
def test_bad_options(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(UserError):
        CIFAR10Data(tmp_path, **options)


def test_failed_download_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self, root: str, download: bool) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(CIFAR10, "__init__", fail)
    with pytest.raises(UserError, match=r"could not be fetched.*no route to host"):
        CIFAR10Data(tmp_path, download=True).dataset("train")


def test_real_set() -> None:
    """Against torchvision's own reader on a real folder, if there is one."""
    data_root = Path(os.environ.get("EXPLAINODE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "cifar10"
    if not (data_root / "cifar-10-batches-py").is_dir():
        pytest.skip(
            "needs CIFAR-10 in torchvision's layout (cifar-10-batches-py) in the cifar10 folder of the test data"
        )
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = CIFAR10Data(data_root, verify=False).dataset("test")
    assert len(dataset) == 10_000 and torch.bincount(dataset.labels).tolist() == [1000] * 10
