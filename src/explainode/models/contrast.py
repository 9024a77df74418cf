"""Why this class and not that one: a network whose logits are differences to one class."""

from __future__ import annotations

from torch import Tensor, nn

from explainode.errors import UserError


class Contrast(nn.Module):
    """z_k(x) - z_a(x) for every class k: what any method explains of it speaks for k *and not* for a.

    Probabilities are those of the network, since a softmax does not see what is taken from all logits. What linear methods (gradients, CAMs,
    relevance that is linear in what it starts from) say of it is the difference of what they say of the two classes.

    Args:
        network: pixels in [0, 1] to logits.
        against: the class a, from 0 on.

    Shapes:
        x: (B, C, H, W) -> (B, K); column a is 0.

    Raises:
        UserError: if `against` is negative, or, when it is asked, the network has no such class.

    Source: contrastive explanations, as Prabhushankar et al. 2020 and the contrastive relevance of Gu et al. 2018 take the difference; ours is of the logits.

    Example:
        >>> import torch
        >>> net = Contrast(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), against=1)
        >>> bool((net(torch.rand(2, 3, 2, 2))[:, 1] == 0).all())
        True
    """

    def __init__(self, network: nn.Module, against: int) -> None:
        super().__init__()
        if against < 0:
            raise UserError(f"classes count from 0, got against={against}")
        self.network, self.against = network, against
        if hasattr(network, "image_size"):
            self.image_size = network.image_size

    def forward(self, x: Tensor) -> Tensor:
        z = self.network(x)
        if self.against >= z.shape[1]:
            raise UserError(f"class {self.against} is no class of this network; choose one of 0..{z.shape[1] - 1}")
        return z - z[:, self.against, None]
