"""What an output is made from, and what a file in this folder defines."""

import dataclasses
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from segdeploy.images import Photograph
from segdeploy.spec import Spec


@dataclasses.dataclass(frozen=True, slots=True)
class Segmented:
    """One segmented image: all that an output may be made from, and must leave as it is.

    `class_map` (H0, W0) holds the class of each pixel of the photograph; `spec` names the classes and their colours.
    """

    photograph: Photograph
    class_map: NDArray[np.uint8]
    spec: Spec

    @property
    def photo(self) -> NDArray[np.uint8]:
        """RGB (H0, W0, 3), upright; copied out of the decoder where it is first asked for."""
        return self.photograph.pixels


class Output(Protocol):
    """What a file in `outputs/` defines. The user types its name: `mask.py` is `--write mask`.

    It may also define FOLDER_SUFFIX. The files go to the folder OUT followed by it, which is `-` and the name of the
    module where there is none; an empty one puts them into OUT itself. And SHOWS_PHOTO, False where `encode` asks for
    no pixel of the photo: then a photo that was decoded at a smaller scale is not decoded once more.
    """

    SUFFIX: str  # how the names of its files end: ".png"

    def encode(self, segmented: Segmented) -> bytes:
        """The bytes of one file, the same for the same image. Raise SegdeployError where the format cannot hold it."""
