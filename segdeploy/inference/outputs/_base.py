"""What an output is made from, and what a file in this folder defines."""

import dataclasses
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from segdeploy.images import Photograph
from segdeploy.spec import Spec


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """How outputs are made, where that can be chosen.

    `opacity`: of the colours over a photo, 0 to 1. `values`: of each class the value that masks and class maps hold for
    it; None where that is its index.
    """

    opacity: float = 0.5
    values: tuple[int, ...] | None = None


USUAL = OutputOptions()


class _OfClasses:
    """What outputs of either kind know of their classes."""

    spec: Spec
    options: OutputOptions

    def to_values(self, class_map: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A class map in the values that stand for the classes."""
        values = self.options.values
        return class_map if values is None else np.array(values, np.uint8)[class_map]

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        """The colour of each value, to the highest; black where no class has that value."""
        values = self.options.values or range(len(self.spec.colours))
        colours = dict(zip(values, self.spec.colours, strict=True))
        return [colours.get(value, (0, 0, 0)) for value in range(max(values) + 1)]

    def colour(self, index: int) -> str:
        """Of a class, as `#rrggbb`."""
        return "#{:02x}{:02x}{:02x}".format(*self.spec.colours[index])


@dataclasses.dataclass(frozen=True)
class Segmented(_OfClasses):
    """One segmented image: all that an output may be made from, and must leave as it is.

    `class_map` (H0, W0) holds the class of each pixel of the photograph; `spec` names the classes and their colours.
    `path`: the file of the photograph.
    """

    photograph: Photograph
    class_map: NDArray[np.uint8]
    spec: Spec
    options: OutputOptions = USUAL
    path: Path | None = None

    @property
    def photo(self) -> NDArray[np.uint8]:
        """RGB (H0, W0, 3), upright; copied out of the decoder where it is first asked for."""
        return self.photograph.pixels

    @property
    def values(self) -> NDArray[np.uint8]:
        """The class map (H0, W0) in the values that stand for the classes."""
        return self.to_values(self.class_map)


@dataclasses.dataclass(frozen=True)
class Huge(_OfClasses):
    """An image (height, width) whose class map is too large for memory: it comes in rows, from the top down.

    `path`: the file of the photograph.
    """

    height: int
    width: int
    spec: Spec
    options: OutputOptions
    path: Path


class RowWriter(Protocol):
    """Writes a class map that comes in rows."""

    def write(self, class_map: NDArray[np.uint8], /) -> None:
        """The next rows (h, width), as indices of classes."""

    def end(self) -> None:
        """That was the last row; never called where the file will not be whole."""

    def close(self) -> None:
        """Let go of the file, whole or not."""


class Output(Protocol):
    """What a file in `outputs/` defines. The user types its name: `mask.py` is `--write mask`.

    It may also define FOLDER_SUFFIX. The files go to the folder OUT followed by it, which is `-` and the name of the
    module where there is none; an empty one puts them into OUT itself. And SHOWS_PHOTO, False where `encode` asks for
    no pixel of the photo: then a photo that was decoded at a smaller scale is not decoded once more. And OPTIONS, the
    names of the OutputOptions that its files depend on: with others they are made again. And NEEDS, the module of an
    extra (`extras.BROUGHT_BY`) without which it makes nothing.

    Of images too large for memory it makes files where it defines `rows`, a function of the path to write to and of
    the Huge, which gives a RowWriter; or SHRINKS, True where a smaller picture of them does.
    """

    SUFFIX: str  # how the names of its files end: ".png"

    def encode(self, segmented: Segmented) -> bytes:
        """The bytes of one file, the same for the same image. Raise SegdeployError where the format cannot hold it."""
