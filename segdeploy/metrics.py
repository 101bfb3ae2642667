"""Confusion matrix, mIoU and agreement. Counts are integers over the whole data set; division comes last."""

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

ClassMap = NDArray[np.uint8]
Confusion = NDArray[np.int64]
Pixel = TypeVar("Pixel", bound=np.generic)


def confusion(truth: ClassMap, predicted: ClassMap, *, classes: int, ignore_index: int) -> Confusion:
    """(K, K) pixel counts, truth by row; pixels whose truth is `ignore_index` count nowhere."""
    counted = truth != ignore_index
    pairs = truth[counted].astype(np.int64) * classes + predicted[counted]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def iou(counts: Confusion) -> NDArray[np.float64]:
    """(K,) intersection over union; NaN for a class that is in neither truth nor prediction (Cityscapes' policy)."""
    hit = np.diag(counts).astype(np.float64)
    union = counts.sum(axis=0) + counts.sum(axis=1) - hit
    each = np.full(len(hit), np.nan)
    np.divide(hit, union, out=each, where=union > 0)
    return each


def miou(counts: Confusion) -> float | None:
    """Mean IoU in 0..1 over the classes that occur; None when no pixel was counted."""
    each = iou(counts)
    return None if np.isnan(each).all() else float(np.nanmean(each))


def pixel_accuracy(counts: Confusion) -> float | None:
    total = int(counts.sum())
    return int(np.trace(counts)) / total if total else None


def boundary_band(class_map: ClassMap, *, width: int = 3) -> NDArray[np.bool_]:
    """(H, W): pixels within `width` of a pixel of another class (city-block distance)."""
    band = np.zeros(class_map.shape, bool)
    for axis in (0, 1):
        first, second = _neighbours(class_map, axis)
        changes = first != second
        before, after = _neighbours(band, axis)
        np.logical_or(before, changes, out=before)
        np.logical_or(after, changes, out=after)
    for _ in range(width - 1):
        band = _dilated(band)
    return band


def share(hits: Iterable[NDArray[np.bool_]]) -> float | None:
    """Of all pixels in all maps, the share that is true; None when there is none."""
    true = total = 0
    for hit in hits:
        true += int(np.count_nonzero(hit))
        total += hit.size
    return true / total if total else None


def _dilated(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    wider = mask.copy()
    for axis in (0, 1):
        before, after = _neighbours(mask, axis)
        into_before, into_after = _neighbours(wider, axis)
        np.logical_or(into_before, after, out=into_before)
        np.logical_or(into_after, before, out=into_after)
    return wider


def _neighbours(plane: NDArray[Pixel], axis: int) -> tuple[NDArray[Pixel], NDArray[Pixel]]:
    return (plane[:-1], plane[1:]) if axis == 0 else (plane[:, :-1], plane[:, 1:])
