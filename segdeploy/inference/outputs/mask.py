"""The class map as a palette PNG: each pixel is the index of its class, shown in the colour of that class."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdeploy import images
from segdeploy.inference.outputs._base import Huge, Segmented

SUFFIX = ".png"
FOLDER_SUFFIX = ""
SHOWS_PHOTO = False
OPTIONS = ("values",)


def encode(segmented: Segmented) -> bytes:
    return images.mask_png(segmented.values, segmented.palette)


class _Rows:
    def __init__(self, path: Path, huge: Huge) -> None:
        self._huge = huge
        self._file = path.open("wb")
        self._png = images.mask_writer(self._file, huge.height, huge.width, huge.palette)

    def write(self, class_map: NDArray[np.uint8], /) -> None:
        self._png.write(self._huge.to_values(class_map))

    def end(self) -> None:
        self._png.end()

    def close(self) -> None:
        self._file.close()


rows = _Rows
