"""What an output is made from, and what a file in this folder defines."""

import dataclasses
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


@dataclasses.dataclass(frozen=True, slots=True)
class Segmented:
    """One segmented image: all that an output may be made from, and must leave as it is.

    `class_map` (H0, W0) holds the class of each pixel of the photograph; `spec` names the classes and their colours.
    """

    photograph: Photograph
    class_map: NDArray[np.uint8]
    spec: Spec
    options: OutputOptions = USUAL

    @property
    def photo(self) -> NDArray[np.uint8]:
        """RGB (H0, W0, 3), upright; copied out of the decoder where it is first asked for."""
        return self.photograph.pixels

    @property
    def values(self) -> NDArray[np.uint8]:
        """The class map (H0, W0) in the values that stand for the classes."""
        values = self.options.values
        return self.class_map if values is None else np.array(values, np.uint8)[self.class_map]

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        """The colour of each value, to the highest; black where no class has that value."""
        values = self.options.values or range(len(self.spec.colours))
        colours = dict(zip(values, self.spec.colours, strict=True))
        return [colours.get(value, (0, 0, 0)) for value in range(max(values) + 1)]

    def colour(self, index: int) -> str:
        """Of a class, as `#rrggbb`."""
        return "#{:02x}{:02x}{:02x}".format(*self.spec.colours[index])


class Output(Protocol):
    """What a file in `outputs/` defines. The user types its name: `mask.py` is `--write mask`.

    It may also define FOLDER_SUFFIX. The files go to the folder OUT followed by it, which is `-` and the name of the
    module where there is none; an empty one puts them into OUT itself. And SHOWS_PHOTO, False where `encode` asks for
    no pixel of the photo: then a photo that was decoded at a smaller scale is not decoded once more. And OPTIONS, the
    names of the OutputOptions that its files depend on: with others they are made again.
    """

    SUFFIX: str  # how the names of its files end: ".png"

    def encode(self, segmented: Segmented) -> bytes:
        """The bytes of one file, the same for the same image. Raise SegdeployError where the format cannot hold it."""
