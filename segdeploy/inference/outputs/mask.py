"""The class map as a palette PNG: each pixel is the index of its class, shown in the colour of that class."""

from segdeploy import images
from segdeploy.inference.outputs._base import Segmented

SUFFIX = ".png"
FOLDER_SUFFIX = ""
SHOWS_PHOTO = False
OPTIONS = ("values",)


def encode(segmented: Segmented) -> bytes:
    return images.mask_png(segmented.values, segmented.palette)
