"""Networks of rectifiers without kinks, for whoever needs their second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from explainode.errors import UserError

_RELU = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}


class SoftRectifiers(TorchFunctionMode):
    """Context in which relu(x) is softplus(beta x) / beta, and relu6 and hardtanh the difference of two of them, as modules or as functions.

    The gradient of a ReLU network is constant between kinks, so its second derivative is zero nearly everywhere; softplus has one, and tends to
    the rectifier for beta to infinity. In-place rectifiers return a new tensor and leave their input: who goes on with the input has none.

    Args:
        beta: sharpness, in units of the activations.

    Source: Dombrowski et al. 2019, Eq. 7; Ghorbani et al. 2019, Sec. 3.1.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        if not beta > 0:
            raise UserError(f"beta must be positive, got {beta}; 10 is smooth, 100 nearly a rectifier")
        self.beta = beta

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _RELU:
            return F.softplus(args[0], self.beta)
        if func in (F.relu6, F.hardtanh):  # nn.ReLU6 is a hardtanh
            return self._clipped(func is F.relu6, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _clipped(
        self, relu6: bool, x: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
    ) -> Tensor:
        low, high = (0.0, 6.0) if relu6 else (min_val, max_val)
        return low + F.softplus(x - low, self.beta) - F.softplus(x - high, self.beta)
