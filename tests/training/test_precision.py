"""When bfloat16 is a warning: on a CPU that does not multiply it, as far as torch can tell."""

from __future__ import annotations

import platform

import pytest
import torch

from explainode.training.precision import native_bf16, slow_precision

X86 = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


@pytest.fixture
def processor(monkeypatch):
    """Pretend to be an x86 processor with (True), without (False), or of an unknown kind (None: torch has no such question)."""

    def pretend(*answers):
        monkeypatch.setattr(platform, "machine", lambda: "x86_64")
        for name, answer in zip(X86, answers, strict=True):
            if answer is None:
                monkeypatch.delattr(torch.cpu, name, raising=False)
            else:
                monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)

    return pretend


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ((True, False), True),
        ((False, True), True),
        ((False, False), False),
        ((None, False), False),
        ((None, None), None),
    ],
)
def test_what_torch_says_of_the_processor(processor, answers, expected):
    processor(*answers)
    assert native_bf16() is expected


def test_this_machine_answers(monkeypatch):
    assert native_bf16() in (True, False, None)
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert native_bf16() in (True, False, None)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_the_sentence_says_what_to_set(processor, precision):
    processor(False, False)
    sentence = slow_precision(precision, torch.device("cpu"))
    assert precision in sentence and sentence.endswith("set trainer.precision=32-true")


@pytest.mark.parametrize(
    ("answers", "precision", "device"),
    [((False, False), "32-true", "cpu"), ((False, False), "bf16-mixed", "cuda"), ((True, False), "bf16-mixed", "cpu"), ((None, None), "bf16-mixed", "cpu")],
)  # fmt: skip
def test_nothing_is_said_where_nothing_can_be_done(processor, answers, precision, device):
    processor(*answers)
    assert slow_precision(precision, torch.device(device)) is None
