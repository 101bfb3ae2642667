"""The deployed form of a network: image in, class map out."""

import torch
from torch import Tensor, nn

from segdeploy.blocks import Network
from segdeploy.spec import Spec


class Deployed(nn.Module):
    """uint8 RGB (N, H, W, 3) -> class map uint8 (N, H', W'), or float32 logits (N, K, H', W').

    The order is what every parser takes and what is fast: cast, transpose, normalise. The argmax is in float32, the
    first index on ties, and goes to uint8 through float.
    """

    mean: Tensor
    gain: Tensor

    def __init__(self, network: Network, spec: Spec) -> None:
        super().__init__()
        self.network = network
        self.output = spec.output
        column = (1, 3, 1, 1)
        mean = torch.tensor(spec.mean, dtype=torch.float64).reshape(column)
        std = torch.tensor(spec.std, dtype=torch.float64).reshape(column)
        self.register_buffer("mean", (255 * mean).float())
        self.register_buffer("gain", (1 / (255 * std)).float())

    def normalised(self, images: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, H, W), what the network was trained on."""
        return (images.to(self.mean.dtype).permute(0, 3, 1, 2) - self.mean) * self.gain

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(self.normalised(images))
        if self.output == "logits":
            return logits
        return logits.argmax(dim=1).to(torch.float32).to(torch.uint8)
