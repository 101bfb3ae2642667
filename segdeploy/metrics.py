"""Confusion matrix, mIoU, agreement, boundary F1. Counts are integers over the whole data set; division comes last."""

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
    return _within(band, width - 1)


def boundary_f1(reference: ClassMap, candidate: ClassMap, *, width: int = 3) -> float | None:
    """How well two maps agree on where classes end, in 0..1; None where neither holds a boundary.

    The F1 score of Csurka et al. ("What is a good evaluation measure for semantic segmentation?", BMVC 2013): for each
    class, precision is the share of the candidate's boundary pixels within `width` of one of the reference's, recall
    the converse; the mean over the classes with a boundary in either. Of its variants, the one with a fixed distance in
    pixels (theirs is 0.75 % of the diagonal) and in city blocks, so that it speaks of the pixels of `boundary_band`.
    """
    classes = np.union1d(np.unique(reference), np.unique(candidate))
    scores = [_f1(_rim(reference == each), _rim(candidate == each), width) for each in classes]
    found = [score for score in scores if score is not None]
    return float(np.mean(found)) if found else None


def share(hits: Iterable[NDArray[np.bool_]]) -> float | None:
    """Of all pixels in all maps, the share that is true; None when there is none."""
    true = total = 0
    for hit in hits:
        true += int(np.count_nonzero(hit))
        total += hit.size
    return true / total if total else None


def _f1(reference: NDArray[np.bool_], candidate: NDArray[np.bool_], width: int) -> float | None:
    """Of two boundaries, precision and recall in one; None where both are empty."""
    if not reference.any() or not candidate.any():
        return 0.0 if reference.any() or candidate.any() else None
    precision = float(_within(reference, width)[candidate].mean())
    recall = float(_within(candidate, width)[reference].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _rim(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a region that have a neighbour outside; the end of the image is none."""
    return inside & _dilated(~inside)


def _within(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    for _ in range(width):
        mask = _dilated(mask)
    return mask


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
