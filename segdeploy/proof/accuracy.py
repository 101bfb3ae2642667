"""How right an engine's masks are, at the size of the labels."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from segdeploy import fitting, images, metrics
from segdeploy.data.dataset import Picture
from segdeploy.engines import Engine
from segdeploy.spec import Fit, Precision, Spec


def confusion(
    engine: Engine, pictures: Iterable[Picture], *, decode: fitting.Decode = "exact", done: Callable[[], None]
) -> metrics.Confusion:
    """(K, K) pixel counts of an engine over labelled images; `done` is called after each."""
    spec = engine.spec
    least = fitting.least_decoded(spec, decode)
    counts = np.zeros((len(spec.classes),) * 2, np.int64)
    for picture in pictures:
        truth = picture.required_truth(classes=len(counts), ignore_index=spec.ignore_index)
        photo = images.opened_photograph(picture.image, least=least)
        class_map = fitting.drawn(photo, spec, engine.classify)
        counts += against(truth, images.to_photo_size(class_map, height=photo.height, width=photo.width), spec)
        done()
    return counts


def against(truth: metrics.ClassMap, predicted: metrics.ClassMap, spec: Spec) -> metrics.Confusion:
    """Pixel counts of one image, the prediction brought to the size of its label."""
    height, width = truth.shape
    at_label_size = images.to_photo_size(predicted, height=height, width=width)
    return metrics.confusion(truth, at_label_size, classes=len(spec.classes), ignore_index=spec.ignore_index)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Each in 0..1: mIoU, pixel accuracy and IoU by class; None for a class that occurs nowhere."""

    miou: float | None
    pixel_accuracy: float | None
    classes: Mapping[str, float | None]


def scores(counts: metrics.Confusion, spec: Spec) -> Scores:
    each = metrics.iou(counts)
    return Scores(
        miou=metrics.miou(counts),
        pixel_accuracy=metrics.pixel_accuracy(counts),
        classes={name: None if np.isnan(iou) else float(iou) for name, iou in zip(spec.classes, each, strict=True)},
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How an engine scores on the validation images of a labelled folder, at the size of the labels.

    `delivered` is the type that its layers are really computed in, None where nobody can tell. `fit`: how images met
    the network; `own_fit`: how they do in its Spec, for which it was proven. `decode`: `exact` or `scaled`, as `infer`
    has it.
    """

    schema: int = 1
    model: str
    runtime: str
    device: str
    precision: Precision
    delivered: Precision | None
    fit: Fit
    own_fit: Fit
    decode: fitting.Decode
    random_weights: bool
    sha256: str
    data: str
    images: int
    miou: float | None
    pixel_accuracy: float | None
    classes: Mapping[str, float | None]
