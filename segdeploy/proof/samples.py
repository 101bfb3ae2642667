"""Images as a network sees them, each with its truth where it has one: what proofs are made on."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from segdeploy import images
from segdeploy.data.dataset import Picture
from segdeploy.spec import Spec


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """An image (H, W, 3) at network size, and its class indices at the size of its mask, None without a mask."""

    name: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None


class Samples(Protocol):
    """Samples that can be counted before any is read, and walked over more than once."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Sample]: ...


class FileSamples:
    """Pictures, read one at a time."""

    def __init__(self, pictures: Sequence[Picture], spec: Spec) -> None:
        self._pictures = pictures
        self._spec = spec

    def __len__(self) -> int:
        return len(self._pictures)

    def __iter__(self) -> Iterator[Sample]:
        classes, ignored = len(self._spec.classes), self._spec.ignore_index
        for picture in self._pictures:
            image = images.prepared(images.read(picture.image), self._spec)
            yield Sample(picture.image.name, image, picture.truth(classes=classes, ignore_index=ignored))
