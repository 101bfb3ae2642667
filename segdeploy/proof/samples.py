"""Images as a network sees them, each with its truth where it has one: what proofs are made on."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from segdeploy import fitting, images
from segdeploy.data.dataset import Picture
from segdeploy.fitting import WHOLE, Inside
from segdeploy.spec import Spec


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """An input of the network (H, W, 3), and its class indices at the size of its mask, None without a mask.

    `inside`: where in its class map the photograph lies; the whole of it, unless the photograph is letterboxed, or
    smaller than a tile. The truth is of no more than that.
    """

    name: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None
    inside: Inside = WHOLE


class Samples(Protocol):
    """Samples that can be counted before any is read, and walked over more than once."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Sample]: ...


class FileSamples:
    """Pictures, read one at a time: a sample of each.

    Of pictures that the Spec cuts into tiles one tile each, in turn: corners, edges and the middle all come.
    """

    def __init__(self, pictures: Sequence[Picture], spec: Spec) -> None:
        self._pictures = pictures
        self._spec = spec

    def __len__(self) -> int:
        return len(self._pictures)

    def __iter__(self) -> Iterator[Sample]:
        return map(self.of, range(len(self)))

    def of(self, place: int) -> Sample:
        """The sample of the picture at a place of the list."""
        picture, spec = self._pictures[place], self._spec
        photo = images.read(picture.image)
        seen = fitting.seen(photo, spec, place)
        truth = picture.truth(classes=len(spec.classes), ignore_index=spec.ignore_index)
        if truth is not None and fitting.is_tiled(spec, *photo.shape[:2]):
            truth = images.to_photo_size(truth, height=photo.shape[0], width=photo.shape[1])[seen.window]
        return Sample(picture.image.name, seen.image, truth, seen.inside)
