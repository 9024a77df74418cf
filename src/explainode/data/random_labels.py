"""Any labeled data with random labels to learn from: what a network sees in pictures that say nothing about their class."""

from __future__ import annotations

from dataclasses import replace

import torch

from explainode.data.base import ImageData, ImageDataset
from explainode.data.batch import Batch
from explainode.errors import UserError
from explainode.randomness import sample_keys, uniform


class RandomLabelsDataset:
    """The pictures of a source; a share of them has labels that are functions of (seed, sample id) alone.

    Args:
        source: where pictures and true labels come from.
        share: of the pictures, in [0, 1].
        seed: part of the key.
    """

    def __init__(self, source: ImageDataset, share: float, seed: int) -> None:
        self.source, self.share, self.seed = source, share, seed
        self.num_classes, self.class_names = source.num_classes, source.class_names

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, position: int) -> Batch:
        return self.__getitems__([range(len(self))[position]])

    def __getitems__(self, positions: list[int]) -> Batch:
        batch = self.source.__getitems__(positions)
        chosen, drawn = uniform(sample_keys(batch.sample_id, self.seed, "random labels"), 2).double().unbind(1)
        label = torch.where(chosen < self.share, (drawn * self.num_classes).long(), batch.label)
        return replace(batch, label=torch.where(batch.label < 0, batch.label, label))


class RandomLabelsData(ImageData):
    """`source`, whose training labels are drawn uniformly from all classes for a share of the pictures, once and for all.

    Batches, order and augmentation are the source's own, and so are validation and test: a twin network trained on this differs from the one
    trained on the source in nothing but what it was told. A method whose maps of both are alike explains the picture, not the network: see
    the metric `data_randomization`. The twin has to be trained until it knows its labels by heart, or it is merely untrained.

    Args:
        source: any other data with labels.
        share: of the training pictures, in [0, 1]; one in K of them draws its own label again.
        label_seed: key of the labels; apart from `seed`, so that runs with different seeds learn the same ones.
        num_classes: the source's; None takes it from there.

    Raises:
        UserError: for a share outside [0, 1], or another number of classes than the source's.

    Source: Zhang et al. 2017 (random labels); Adebayo et al. 2018, Sec. 5 (data randomization), who permute the labels of all images. We draw
    them, so that a label does not depend on the other images.
    """

    def __init__(
        self, source: ImageData, share: float = 1.0, label_seed: int = 0, num_classes: int | None = None
    ) -> None:
        super().__init__(source.batch_size, source.num_workers, source.seed, source.augment)
        if not 0 <= share <= 1:
            raise UserError(f"data.share is a fraction of the training pictures in [0, 1], got {share}")
        if num_classes is not None and num_classes != source.num_classes:
            raise UserError(
                f"data.source has {source.num_classes} classes, got data.num_classes={num_classes}; leave it at null"
            )
        self.source, self.share, self.label_seed = source, share, label_seed
        self.num_classes, self.class_names, self.image_size = source.num_classes, source.class_names, source.image_size

    def prepare_data(self) -> None:
        self.source.prepare_data()

    def make_dataset(self, split: str) -> ImageDataset:
        source = self.source.dataset(split)
        return RandomLabelsDataset(source, self.share, self.label_seed) if split == "train" else source
