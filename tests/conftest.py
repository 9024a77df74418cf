"""A tiny network, tiny data and a quiet trainer, for the tests of rooms that train."""

from __future__ import annotations

import os

# Before torch is imported, and inherited by the programs under test: threads of several workers would wait for each other's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from made_up_results import make_results  # noqa: F401  (a fixture)
from torch import nn

from explainode.data.shapes import ShapesData
from explainode.training.checkpoint import AtomicCheckpointIO
from explainode.training.classifier import Classifier


def pytest_addoption(parser):
    parser.addoption("--nightly", action="store_true", help="also run what is marked nightly")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--nightly"):
        for item in items:
            if item.get_closest_marker("nightly"):
                item.add_marker(
                    pytest.mark.skip(
                        reason="nightly: a larger sample of what other tests hold; pytest --nightly runs it"
                    )
                )


@pytest.fixture
def data():
    def make(train_size=48, **settings):
        return ShapesData(
            **{"train_size": train_size, "val_size": 16, "test_size": 16, "size": 16, "batch_size": 8, **settings}
        )

    return make


@pytest.fixture
def network():
    """Batch norm and dropout inside: running statistics and random numbers have to survive a resume."""

    def make(seed=0):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 8),
        )

    return make


@pytest.fixture
def classifier(network):
    def make(seed=0, **settings):
        return Classifier(
            **{"network": network(seed), "optimizer": partial(torch.optim.Adam, lr=1e-2), "num_classes": 8, **settings}
        )

    return make


@pytest.fixture
def trainer():
    def make(folder: Path, callbacks=(), max_epochs=2, checkpoint=True, **settings):
        every = [ModelCheckpoint(folder / "checkpoints", "epoch{epoch:03d}", save_last=True, auto_insert_metric_name=False,
                                 save_on_train_epoch_end=True, enable_version_counter=False)]  # fmt: skip
        return Trainer(
            **{
                "accelerator": "cpu",
                "devices": 1,
                "max_epochs": max_epochs,
                "callbacks": [*callbacks, *(every if checkpoint else [])],
                "enable_checkpointing": checkpoint,
                "logger": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "use_distributed_sampler": False,
                "num_sanity_val_steps": 0,
                "default_root_dir": folder,
                "plugins": [AtomicCheckpointIO()],
                **settings,
            }
        )

    return make
