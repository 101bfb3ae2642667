"""How right an engine's masks are, at the size of the labels."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from segdeploy import images, metrics
from segdeploy.data import dataset
from segdeploy.engines import Engine
from segdeploy.spec import Spec

SCHEMA = 1


def confusion(engine: Engine, samples: Iterable[dataset.Sample], *, done: Callable[[], None]) -> metrics.Confusion:
    """(K, K) pixel counts of an engine over labelled images; `done` is called after each."""
    spec = engine.spec
    counts = np.zeros((len(spec.classes),) * 2, np.int64)
    for sample in samples:
        truth = dataset.read_truth(sample.mask, classes=len(counts), ignore_index=spec.ignore_index)
        predicted = engine.segment(images.read(sample.image))
        counts += against(truth, predicted, spec)
        done()
    return counts


def against(truth: metrics.ClassMap, predicted: metrics.ClassMap, spec: Spec) -> metrics.Confusion:
    """Pixel counts of one image, the prediction brought to the size of its label."""
    height, width = truth.shape
    at_label_size = images.to_photo_size(predicted, height=height, width=width)
    return metrics.confusion(truth, at_label_size, classes=len(spec.classes), ignore_index=spec.ignore_index)


def report(counts: metrics.Confusion, spec: Spec) -> dict[str, Any]:
    """mIoU, pixel accuracy and IoU by class, each in 0..1; null for a class that occurs nowhere."""
    each = metrics.iou(counts)
    return {
        "miou": metrics.miou(counts),
        "pixel_accuracy": metrics.pixel_accuracy(counts),
        "classes": {name: None if np.isnan(iou) else float(iou) for name, iou in zip(spec.classes, each, strict=True)},
    }
