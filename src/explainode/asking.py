"""`explainode.explain`: the question as a user asks it, with names, arrays, pictures and paths, put into the form that explanations are made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from explainode.attribution import Explanation
from explainode.data.pictures import load_picture
from explainode.errors import UserError
from explainode.explainers.base import Explainer
from explainode.explainers.targets import Target
from explainode.explaining import explain as explain_batch
from explainode.registry.build import get

SLACK = 1e-3  # of a resampling that rings, or of bytes scaled by 1/255 in half precision


def explain(method: str | Explainer, network: nn.Module, image: Any, target: Target = None, **more: Any) -> Explanation:
    """Explain one picture or a batch, and record all that was computed on the way.

    Args:
        method: an entry of the register ("ig"), or an `Explainer`.
        network: from pixels (B, 3, H, W) in [0, 1] to logits (B, K).
        image: (B, C, H, W) or (C, H, W) tensor in [0, 1]; (H, W, C), (H, W) or (B, H, W, C) array, of bytes or in [0, 1]; a PIL picture; a path; or a
            list of these. A path is cut square and resized to `network.image_size` where the network has one.
        target, more: of `explainode.explaining.explain`: noise="off", seed=0, chunk_size="auto", sample_ids, mask, boxes, ...

    Raises:
        UserError: for an unknown name, a picture that cannot be read, or pixels outside of [0, 1].

    Example:
        >>> import explainode, numpy, torch
        >>> network = explainode.get("model/small_vgg", num_classes=4)
        >>> record = explainode.explain("saliency", network, numpy.zeros((32, 32, 3), dtype=numpy.uint8))
        >>> record.attribution.shape
        torch.Size([1, 3, 32, 32])
    """
    explainer = get(f"explainer/{method}") if isinstance(method, str) else method
    if not isinstance(explainer, Explainer):
        raise UserError(
            f"a method is a name (explainode list explainer) or an Explainer, got {type(method).__name__}; "
            "the order is explain(method, network, image)"
        )
    if not isinstance(network, nn.Module):
        raise UserError(
            f"the network is a torch.nn.Module, got {type(network).__name__}; the order is explain(method, network, image)"
        )
    first = next((p for p in network.parameters() if p.is_floating_point()), None)
    x = as_pixels(image, getattr(network, "image_size", None))
    if first is not None:
        x = x.to(first.device)
        x = x if x.dtype == first.dtype or isinstance(image, Tensor) else x.to(first.dtype)
    check_pixels(x)
    return explain_batch(explainer, network, x, target, **more)


def as_pixels(image: Any, size: int | None = None) -> Tensor:
    """(B, C, H, W): what `explain` takes as an image, as a batch.

    Raises:
        UserError: for anything else, or pictures of several sizes.
    """
    if isinstance(image, Tensor):
        return image if image.dim() != 3 else image[None]
    if isinstance(image, (str, Path)):
        return load_picture(image, size).image[None]
    if isinstance(image, np.ndarray):
        return _of_array(image)
    if hasattr(image, "convert") and hasattr(image, "size"):  # a PIL picture
        return _of_array(np.asarray(image.convert("RGB")))
    if isinstance(image, Sequence) and len(image):
        parts = [as_pixels(one, size) for one in image]
        if len({part.shape[1:] for part in parts}) > 1:
            raise UserError(
                f"pictures of one batch have one size, got {sorted({tuple(part.shape[2:]) for part in parts})}; resize them first"
            )
        return torch.cat(parts)
    raise UserError(f"an image is a tensor, an array, a PIL picture or a path, got {type(image).__name__}")


def _of_array(array: np.ndarray) -> Tensor:
    """(H, W), (H, W, C) or (B, H, W, C) with the channels last, as they are drawn; bytes are scaled."""
    if array.ndim not in (2, 3, 4):
        raise UserError(f"an array of a picture is (H, W), (H, W, C) or (B, H, W, C), got {array.shape}")
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim == 3:
        array = array[None]
    if array.shape[-1] not in (1, 3) and array.shape[1] in (1, 3):
        raise UserError(
            f"an array has its channels last, (H, W, C), got {array.shape[1:]}; give a tensor for channels first"
        )
    scale = 255 if array.dtype == np.uint8 else 1
    return torch.from_numpy(np.array(array)).permute(0, 3, 1, 2).to(torch.float32).contiguous() / scale


def check_pixels(x: Tensor) -> None:
    """Refuse what is no picture in [0, 1]: a baseline, a radius and a perturbation would mean something else.

    Raises:
        UserError: with the least and the largest value.
    """
    if not x.is_floating_point() or not x.numel():
        return  # told by what comes next
    low, high = float(x.min()), float(x.max())
    if not (low >= -SLACK and high <= 1 + SLACK):
        cure = (
            "divide by 255"
            if low >= 0 and high > 1.5
            else "put the normalization into the network: nn.Sequential(Normalize(mean, std), network)"
        )
        raise UserError(f"pixels lie in [0, 1], got values from {low:.3g} to {high:.3g}; {cure}")
