"""Photographs with the mask of every engine, as a result keeps them for its page."""

import base64
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from segdeploy import images
from segdeploy.data.dataset import Picture
from segdeploy.images import Colours
from segdeploy.progress import Progress
from segdeploy.timing.contest import Contestant
from segdeploy.timing.result_types import DrawnPicture, Subject

LONGEST_SIDE = 512  # of a picture in a result
SHOWN = 6  # pictures in a result
ClassMap = NDArray[np.uint8]


def drawn(
    contestants: Sequence[Contestant], pictures: Sequence[Picture], *, progress: Progress
) -> tuple[DrawnPicture, ...]:
    """The pictures on which the engines differ most from PyTorch, with the mask of every engine."""
    chosen = worst_first([each.subject for each in contestants], pictures)[:SHOWN]
    found = []
    with progress("Drawing", len(chosen)) as done:
        for picture in chosen:
            found.append(_drawn(contestants, picture))
            done()
    return tuple(found)


def worst_first(subjects: Sequence[Subject], pictures: Sequence[Picture]) -> list[Picture]:
    """By the least agreement that any certificate found."""
    worst: dict[str, float] = {}
    stages = (subject.certificate.engine for subject in subjects if subject.certificate)
    for image in (image for stage in stages if stage for image in stage.worst_images):
        worst[image.image] = min(worst.get(image.image, 1.0), image.agreement)
    return sorted(pictures, key=lambda picture: worst.get(picture.image.name, 1.0))


def _drawn(contestants: Sequence[Contestant], picture: Picture) -> DrawnPicture:
    photo, spec = images.read(picture.image), contestants[0].engine.spec
    masks = {each.subject.id: each.engine.segment(photo) for each in contestants}
    torch = (each.subject.id for each in contestants if each.subject.runtime == "torch")
    reference = masks[next(torch, contestants[0].subject.id)]
    return encoded(
        picture.image.name,
        photo,
        masks,
        truth=picture.truth(classes=len(spec.classes), ignore_index=spec.ignore_index),
        reference=reference,
        colours=spec.colours,
    )


def encoded(
    name: str,
    photo: NDArray[np.uint8],
    masks: Mapping[str, ClassMap],
    *,
    truth: ClassMap | None,
    reference: ClassMap,
    colours: Colours,
) -> DrawnPicture:
    """(H0, W0, 3) photo and (H0, W0) class maps, made smaller and encoded; each agrees so much with `reference`."""
    height, width, _ = photo.shape
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    height, width = max(1, round(height * scale)), max(1, round(width * scale))

    def png(class_map: ClassMap) -> str:
        return _text(images.mask_png(images.to_photo_size(class_map, height=height, width=width), colours))

    return DrawnPicture(
        name=name,
        height=height,
        width=width,
        photo=_text(images.jpeg(images.to_network_size(photo, height=height, width=width))),
        truth=None if truth is None else png(truth),
        masks={each: png(class_map) for each, class_map in masks.items()},
        agreement={each: float(np.mean(class_map == reference)) for each, class_map in masks.items()},
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
