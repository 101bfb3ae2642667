"""How a mask is read: which class a value, a colour or a drawn shape of its file is."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segdeploy import artifact, image_files, images
from segdeploy.data import sizes
from segdeploy.data.shapes import Shape
from segdeploy.data.sizes import Size
from segdeploy.errors import InvalidFileError
from segdeploy.spec import MAX_CLASSES

VOID = -1  # in place of a class: what becomes the ignored index
UNKNOWN = -2
BAND = 256  # rows whose colours are looked up at once: the numbers on the way take many bytes a pixel
AS_PUBLISHED = "Bring the masks as they were published, or give index masks in our own layout (docs/data.md)."
Colour = tuple[int, int, int]
UInt8 = NDArray[np.uint8]


class MaskReading(Protocol):
    """What makes a class map of a file. It is a value: two that are equal read alike, and it can be pickled."""

    @property
    def identity(self) -> str:
        """Short text that differs between two readings of one file; empty where the values are the classes."""

    def class_map(self, mask: Path, *, ignore_index: int) -> UInt8:
        """(H, W), upright. Raise as `images.read` does, and InvalidFileError where something has no class."""

    def size(self, mask: Path) -> Size:
        """Of the upright class map."""

    def sha256(self, mask: Path) -> str:
        """Of all that the class map is made from."""


@dataclasses.dataclass(frozen=True, slots=True)
class Indices:
    """The values of an image are the classes; the palette's colours do not matter."""

    identity: str = dataclasses.field(default="", init=False)

    def class_map(self, mask: Path, *, ignore_index: int) -> UInt8:  # noqa: ARG002 - void is as it is stored
        return images.read_mask(mask)

    def size(self, mask: Path) -> Size:
        return sizes.size(mask)

    def sha256(self, mask: Path) -> str:
        return artifact.sha256(mask)


INDICES = Indices()


@dataclasses.dataclass(frozen=True, slots=True)
class Values:
    """Each value of an image has its class, or VOID. `table`: pairs of both; `named_in`: what publishes them."""

    table: tuple[tuple[int, int], ...]
    named_in: str

    @property
    def identity(self) -> str:
        return _digest("values", self.table)

    def class_map(self, mask: Path, *, ignore_index: int) -> UInt8:
        found = _classes_of_values(self.table)[images.read_mask(mask)]
        if (found == UNKNOWN).any():
            values = np.unique(images.read_mask(mask)[found == UNKNOWN])
            raise InvalidFileError(
                f"{mask} has the value {values[0]}, which {self.named_in} does not know.",
                AS_PUBLISHED,
            )
        return _with_void(found, ignore_index)

    def size(self, mask: Path) -> Size:
        return sizes.size(mask)

    def sha256(self, mask: Path) -> str:
        return _digest(artifact.sha256(mask), self.identity)


@dataclasses.dataclass(frozen=True, slots=True)
class Colours:
    """Each RGB colour of an image has its class, or VOID.

    `named_in`: what publishes the colours. `others`: what all other colours are, VOID or UNKNOWN. `remedy`: what to do
    about one that is unknown, `{colour}` in it.
    """

    table: tuple[tuple[Colour, int], ...]
    named_in: str
    others: int = UNKNOWN
    remedy: str = AS_PUBLISHED

    @property
    def identity(self) -> str:
        return _digest("colours", self.table, self.others)

    def class_map(self, mask: Path, *, ignore_index: int) -> UInt8:
        if images.looked_at(mask, lambda image, _: images.is_lossy(image)):
            raise InvalidFileError(
                f"{mask} is a JPEG, which changes colours.", "Give the masks as PNG, as they were drawn."
            )
        rgb = images.read(mask)
        found = np.concatenate([self._classes(rgb[top : top + BAND]) for top in range(0, len(rgb), BAND)])
        if (unknown := found == UNKNOWN).any():
            raise self._refusal(mask, rgb[np.unravel_index(unknown.argmax(), unknown.shape)], float(unknown.mean()))
        return _with_void(found, ignore_index)

    def _classes(self, rgb: UInt8) -> NDArray[np.int16]:
        known, classes = _classes_of_colours(self.table)
        packed = _packed(rgb)
        places = np.minimum(np.searchsorted(known, packed), len(known) - 1)
        return np.where(known[places] == packed, classes[places], np.int16(self.others))

    def _refusal(self, mask: Path, rgb: UInt8, share: float) -> InvalidFileError:
        colour = ",".join(map(str, rgb))
        return InvalidFileError(
            f"{mask} has the colour {colour}, which {self.named_in} does not name ({share:.1%} of the pixels).",
            self.remedy.format(colour=colour),
        )

    def size(self, mask: Path) -> Size:
        return sizes.size(mask)

    def sha256(self, mask: Path) -> str:
        return _digest(artifact.sha256(mask), self.identity)


@dataclasses.dataclass(frozen=True, slots=True)
class Painted:
    """Shapes that are painted over a background, the later over the earlier. Each has its class, or VOID."""

    height: int
    width: int
    background: int
    shapes: tuple[tuple[int, Shape], ...]

    @property
    def identity(self) -> str:
        return _digest("painted", self)

    def class_map(self, mask: Path, *, ignore_index: int) -> UInt8:
        size = self.size(mask)
        found = np.full(size[:2], ignore_index if self.background == VOID else self.background, np.uint8)
        for index, shape in self.shapes:
            try:
                shape.paint(found, ignore_index if index == VOID else index)
            except ValueError as error:
                raise InvalidFileError(f"{mask} has a shape that is none: {error}.", "Export it again.") from error
        return found

    def size(self, mask: Path) -> Size:
        if not 0 < self.height * self.width <= image_files.MAX_PIXELS or min(self.height, self.width) < 1:
            raise InvalidFileError(
                f"{mask} describes an image of {self.width}x{self.height} pixels; at most "
                f"{image_files.MAX_PIXELS:,} are read.",
                "Export it again, with the size of the image.",
            )
        return Size(self.height, self.width, 1)

    def sha256(self, mask: Path) -> str:  # noqa: ARG002 - the file holds other images' shapes too
        return self.identity


def _with_void(classes: NDArray[np.int16], ignore_index: int) -> UInt8:
    return np.where(classes == VOID, np.int16(ignore_index), classes).astype(np.uint8)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@functools.lru_cache(maxsize=4)
def _classes_of_values(table: Sequence[tuple[int, int]]) -> NDArray[np.int16]:
    found = np.full(MAX_CLASSES, UNKNOWN, np.int16)
    for value, index in table:
        found[value] = index
    return found


@functools.lru_cache(maxsize=4)
def _classes_of_colours(table: Sequence[tuple[Colour, int]]) -> tuple[NDArray[np.uint32], NDArray[np.int16]]:
    """The colours in 24 bits, in their order, and the class of each."""
    by_colour: Mapping[int, int] = {red << 16 | green << 8 | blue: index for (red, green, blue), index in table}
    ordered = sorted(by_colour.items())
    return np.array([each for each, _ in ordered], np.uint32), np.array([index for _, index in ordered], np.int16)


def _packed(rgb: NDArray[Any]) -> NDArray[np.uint32]:
    """(..., 3) -> (...)."""
    red, green, blue = np.moveaxis(rgb.astype(np.uint32), -1, 0)
    packed: NDArray[np.uint32] = red << 16 | green << 8 | blue
    return packed
