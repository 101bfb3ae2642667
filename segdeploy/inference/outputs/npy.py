"""The class map as a NumPy file: uint8 (H0, W0), for `numpy.load`."""

import io

import numpy as np

from segdeploy.inference.outputs._base import Segmented

SUFFIX = ".npy"
SHOWS_PHOTO = False
OPTIONS = ("values",)


def encode(segmented: Segmented) -> bytes:
    file = io.BytesIO()
    np.save(file, segmented.values, allow_pickle=False)
    return file.getvalue()
