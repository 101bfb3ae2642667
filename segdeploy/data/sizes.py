"""The size of an image, from the head of its file."""

from pathlib import Path
from typing import IO, NamedTuple

from PIL import ImageFile

from segdeploy import images

_ON_ITS_SIDE = {5, 6, 7, 8}  # EXIF orientations
_EXIF_OF_PNG = (b"eXIf", b"Raw profile type exif", b"tiff:Orientation")


class Size(NamedTuple):
    """Pixels of an upright image, and the EXIF orientation (1 to 8) that it is turned by."""

    height: int
    width: int
    orientation: int


def size(path: Path) -> Size:
    """The size of an upright image; pixels are decoded only where nothing else tells. Raise as `images.read` does."""
    return images.looked_at(path, _size)


def _size(image: ImageFile.ImageFile, file: IO[bytes]) -> Size:
    if image.format == "ICO":
        image.load()  # what it says of its size may be wrong
    file.seek(0)
    content = file.read() if image.format == "PNG" else b""
    is_upright = image.format == "TIFF" or (content and not any(mark in content for mark in _EXIF_OF_PNG))
    orientation = 1 if is_upright else images.orientation(image)  # of a PNG it may stand behind the pixels
    height, width = image.size if orientation in _ON_ITS_SIDE else image.size[::-1]
    return Size(height, width, orientation)
