"""The images that prove an adopted graph, and those that decide on how it is read."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from segdeploy import artifact, workspace
from segdeploy.adopting.options import AdoptOptions
from segdeploy.data import dataset
from segdeploy.data.dataset import Dataset, Picture
from segdeploy.origin import ProofPicture
from segdeploy.proof import kit

MOST_PICTURES = 64  # that prove an adopted graph and are remembered


def pictures(options: AdoptOptions, labelled: Dataset | None) -> tuple[list[Picture], list[Picture]]:
    """The images that prove, and those that decide on the preprocessing: others, where there are enough.

    `labelled`: what `options.data` is, where it is labelled.
    """
    from segdeploy.quantization import images_in_parts

    if options.data is None:
        files = [] if options.calibrate is None else images_in_parts.images_in(options.calibrate)
        if options.calibrate is not None and not files:  # a labelled folder in which nothing trains
            files = dataset.image_files(options.calibrate)
        return spread([Picture(file, None) for file in files], MOST_PICTURES), []
    if labelled is None:
        return spread(workspace.pictures_of(options.data), MOST_PICTURES), []
    deciding, prove = list(labelled.train), list(labelled.val)
    if not deciding and len(prove) > 1:
        deciding, prove = prove[::2], prove[1::2]
    return spread(prove or deciding, MOST_PICTURES), deciding or prove


def spread(found: Sequence[Picture], most: int) -> list[Picture]:
    """All, or so many of them, evenly spread."""
    return [found[index] for index in kit.spread(len(found), most)]


def remembered(found: Sequence[Picture], folder: Path) -> Iterator[ProofPicture]:
    for picture in found:
        yield ProofPicture(
            image=os.path.relpath(picture.image, folder),
            image_sha256=artifact.sha256(picture.image),
            mask=None if picture.mask is None else os.path.relpath(picture.mask, folder),
            mask_sha256=picture.mask_sha256,
        )
