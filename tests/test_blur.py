"""The blur against torchvision's, against its settled constants, and one and the same for explanations and metrics."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torchvision.transforms.functional import gaussian_blur

from explainode.blur import blur, filter_matrix, gaussian_kernel, separable_filter
from explainode.errors import UserError
from explainode.explainers.baselines import make_baseline
from explainode.metrics.baselines import BASELINES


@pytest.mark.parametrize(("size", "kernel", "sigma"), [((32, 32), 11, 5.0), ((64, 64), 23, 10.0), ((64, 40), 13, 6.25)])
def test_equals_torchvision(size, kernel, sigma):
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    # rounding of sums in another order
    torch.testing.assert_close(blur(x), gaussian_blur(x, [kernel, kernel], [sigma, sigma]), rtol=0, atol=3e-6)


def test_is_the_settled_gaussian():
    """Size odd(11 s / 32) and sigma 5 s / 32 at s = 32: 11 and 5; an impulse far from the border returns the kernel."""
    impulse = torch.zeros(1, 1, 32, 32)
    impulse[0, 0, 16, 16] = 1
    line = blur(impulse)[0, 0, 16]
    assert (line > 0).sum() == 11
    assert float(torch.log(line[16] / line[18])) == pytest.approx(2**2 / (2 * 5**2), abs=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (5, 7), (33, 80)])
def test_any_size_keeps_a_constant_and_the_dtype(size):
    x = torch.full((2, 3, *size), 0.3, dtype=torch.float64)
    torch.testing.assert_close(blur(x), x, rtol=0, atol=1e-12)  # a kernel of sum 1


def test_explanations_and_metrics_start_from_the_same_picture():
    x = torch.rand(2, 3, 24, 20, generator=torch.Generator().manual_seed(1))
    assert torch.equal(make_baseline("blur", x), BASELINES["blur"](SimpleNamespace(x=x)))


@pytest.mark.parametrize("pad", ["reflect", "zero"])
def test_borders_are_those_of_a_padded_convolution(pad):
    x = torch.rand(1, 2, 9, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    kernel = gaussian_kernel(5, 1.3)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="reflect" if pad == "reflect" else "constant")
    window = (kernel[:, None] * kernel).expand(2, 1, 5, 5)
    torch.testing.assert_close(separable_filter(x, kernel, pad), torch.nn.functional.conv2d(padded, window, groups=2))


def test_a_kernel_larger_than_a_reflection_is_refused():
    with pytest.raises(UserError, match="needs images larger than 5, got a side of 5"):
        filter_matrix(gaussian_kernel(11, 5.0), 5, "reflect")
