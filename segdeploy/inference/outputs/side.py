"""The photo, and to its right the photo tinted with the colours of its classes, as one JPEG."""

from segdeploy import images
from segdeploy.inference.outputs._base import Segmented

SUFFIX = ".jpg"
OPTIONS = ("opacity",)
SHRINKS = True


def encode(segmented: Segmented) -> bytes:
    return images.overlay_jpeg(
        segmented.photo, segmented.class_map, segmented.spec.colours, opacity=segmented.options.opacity, beside=True
    )
