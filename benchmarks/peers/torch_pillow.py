"""PyTorch itself, with torch's own pooling with indices, un-pooling, adaptive pooling and interpolation.

    python benchmarks/peers/torch_pillow.py eager|channels_last|compile CHECKPOINT.safetensors HEIGHT WIDTH IMAGE...

`compile` is torch.compile on the network in channels_last. The weights are segdeploy's; its exact forms of these
operators are made to be exported, and would hold eager PyTorch back.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from _loop import MEAN, STD, cores, serve
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from segdeploy.blocks import MaxPoolWithIndices
from segdeploy.checkpoints import checkpoint
from segdeploy.models import _resnet, pspnet, segnet


def use_torchs_own_operators() -> None:
    def pool(self: MaxPoolWithIndices, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.max_pool2d(x, 2, 2, ceil_mode=self.ceil_mode, return_indices=True)

    def unpool(x: Tensor, indices: Tensor, size: tuple[int, int]) -> Tensor:
        return F.max_unpool2d(x, indices, (2, 2), (2, 2), output_size=size)

    def resize(x: Tensor, size: tuple[int, int], *, align_corners: bool) -> Tensor:
        return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)

    MaxPoolWithIndices.forward = pool  # type: ignore[method-assign,assignment]
    for module, name, own in (
        (segnet, "max_unpool", unpool),
        (pspnet, "resize_bilinear", resize),
        (_resnet, "resize_bilinear", resize),
        (pspnet, "adaptive_average_pool", F.adaptive_avg_pool2d),
    ):
        getattr(module, name)  # what is patched is there
        setattr(module, name, own)


def main() -> None:
    mode, path, height, width, *files = sys.argv[1:]
    use_torchs_own_operators()
    torch.set_num_threads(cores())
    network, _ = checkpoint.load(Path(path))
    network.eval()
    memory = torch.contiguous_format if mode == "eager" else torch.channels_last
    network.to(memory_format=memory)  # type: ignore[call-overload]
    called = torch.compile(network) if mode == "compile" else network
    mean, std = (torch.from_numpy(value).reshape(1, 3, 1, 1) for value in (MEAN, STD))

    def run(batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
        with torch.inference_mode():
            images = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
            logits = called(((images - mean) / std).contiguous(memory_format=memory))
            class_maps: NDArray[np.uint8] = logits.argmax(1).to(torch.uint8).numpy()
            return class_maps

    serve(run, int(height), int(width), files)


if __name__ == "__main__":
    main()
