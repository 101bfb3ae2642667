"""The photo tinted with the colours of its classes, as a JPEG."""

from segdeploy import images
from segdeploy.inference.outputs._base import Segmented

SUFFIX = ".jpg"
FOLDER_SUFFIX = "-overlays"
OPTIONS = ("opacity",)
SHRINKS = True


def encode(segmented: Segmented) -> bytes:
    opacity = segmented.options.opacity
    return images.overlay_jpeg(segmented.photo, segmented.class_map, segmented.spec.colours, opacity=opacity)
