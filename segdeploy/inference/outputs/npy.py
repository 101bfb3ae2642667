"""The class map as a NumPy file: uint8 (H0, W0), for `numpy.load`."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdeploy.inference.outputs._base import Huge, Segmented

SUFFIX = ".npy"
SHOWS_PHOTO = False
OPTIONS = ("values",)


def encode(segmented: Segmented) -> bytes:
    file = io.BytesIO()
    np.save(file, segmented.values, allow_pickle=False)
    return file.getvalue()


class _Rows:
    def __init__(self, path: Path, huge: Huge) -> None:
        self._huge = huge
        self._file = path.open("wb")
        about = {"descr": "|u1", "fortran_order": False, "shape": (huge.height, huge.width)}
        np.lib.format.write_array_header_1_0(self._file, about)

    def write(self, class_map: NDArray[np.uint8], /) -> None:
        self._file.write(self._huge.to_values(class_map).tobytes())

    def end(self) -> None: ...

    def close(self) -> None:
        self._file.close()


rows = _Rows
