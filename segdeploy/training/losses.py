"""Losses on logits, and the class weights of the SegNet paper."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, truth: Tensor, *, ignore_index: int, weights: Tensor | None = None) -> Tensor:
    """Mean over counted pixels, each times its class's weight, divided by the sum of those weights.

    logits (N, K, H, W), truth (N, H, W) int64. A batch without a counted pixel gives 0, where PyTorch's own gives NaN.
    """
    total = F.cross_entropy(logits, truth, weight=weights, ignore_index=ignore_index, reduction="sum")
    counted = truth[truth != ignore_index]
    mass = counted.numel() if weights is None else weights[counted].sum()
    return total / torch.as_tensor(mass, dtype=total.dtype, device=total.device).clamp_min(1e-12)


def class_pixels(
    truths: Iterable[NDArray[np.uint8]], *, classes: int, ignore_index: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(K,) pixels of each class, and (K,) all pixels, ignored ones too, of the images in which it occurs."""
    pixels, present = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    for truth in truths:
        counts = np.bincount(truth[truth != ignore_index], minlength=classes)
        pixels += counts
        present += (counts > 0) * truth.size
    return pixels, present


def median_frequency(pixels: NDArray[np.int64], present: NDArray[np.int64]) -> NDArray[np.float64]:
    """(K,) weights: median frequency over the class's own (arXiv:1511.00561, sec. 4).

    `pixels`: (K,) pixels of each class; `present`: (K,) all pixels of the images in which it occurs. A class that never
    occurs gets 0.
    """
    frequency = np.divide(pixels, present, out=np.zeros(len(pixels)), where=present > 0)
    seen = frequency > 0
    weights = np.zeros(len(pixels))
    if seen.any():
        np.divide(np.median(frequency[seen]), frequency, out=weights, where=seen)
    return weights
