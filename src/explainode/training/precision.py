"""What bfloat16 costs on this machine's processor."""

from __future__ import annotations

import platform
from collections.abc import Callable

import torch


def native_bf16() -> bool | None:
    """Whether the CPU multiplies bfloat16 itself, as torch sees it; None where this torch cannot tell."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        asks: list[Callable[[], bool] | None] = [getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)]
    else:
        asks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    answers = [bool(ask()) for ask in asks if ask is not None]
    return any(answers) if answers else None


def slow_precision(precision: str, device: torch.device) -> str | None:
    """The sentence to warn with where a trainer's precision makes a CPU slower instead of faster; None where it does not."""
    if device.type == "cpu" and precision.startswith("bf16") and native_bf16() is False:
        return f"this CPU has no bfloat16 instructions: {precision} trains about ten times slower than float32; set trainer.precision=32-true"
    return None
