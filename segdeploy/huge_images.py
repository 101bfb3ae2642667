"""Images too large for memory, read from the top down by libvips, which holds no more than a few rows of them."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segdeploy import extras
from segdeploy.errors import InvalidFileError
from segdeploy.paths import shown

UInt8: TypeAlias = NDArray[np.uint8]

LARGEST_IN_MEMORY = 2**26  # pixels: 8192x8192; larger ones are read from the top down, where libvips is installed
_BYTES_AT_ONCE = 2**20  # decoded at once
_DEPTHS = {"uchar": (np.uint8, 255), "ushort": (np.uint16, 65535)}
_COLOURS = {"srgb", "rgb", "rgb16", "b-w", "grey16"}
_ORIENTATION = "orientation"  # of EXIF, as libvips calls it
_GREY = 2  # bands, or fewer: grey, and alpha
_SAVE_ANEW = "Save it anew as an RGB or grey image of 8 or 16 bits (TIFF, PNG or JPEG)."


def is_installed() -> bool:
    """Whether libvips is here: `pip install segdeploy[huge]`."""
    return importlib.util.find_spec("pyvips") is not None


def _vips() -> ModuleType:
    try:
        import pyvips
    except (ImportError, OSError) as error:  # the package is here, and the library is not
        raise extras.broken("pyvips", error) from error
    pyvips.block_untrusted_set(True)  # noqa: FBT003 - libvips' own: no loader that was never meant for strangers' files
    pyvips.cache_set_max(0)
    found: ModuleType = pyvips
    return found


class HugeImage:
    """An image whose rows are asked for from the top down; a context manager.

    RGB; alpha is dropped and 16 bits are divided by 257, as `images.read` does. Raise InvalidFileError for a file that
    libvips does not read, whose colours have another meaning, or that EXIF lays on its side.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(path.open("rb"))
            vips = _vips()
            self._error = vips.Error
            with self._refusing():
                # By its number: a name may be no UTF-8, and libvips takes brackets in one for options.
                source = vips.Source.new_from_descriptor(self._file.fileno())
                self._image: Any = vips.Image.new_from_source(source, "", access="sequential", fail_on="error")
            self._require_usable()
            self._region = vips.Region.new(self._image)
            stack.pop_all()
        self.height, self.width = int(self._image.height), int(self._image.width)
        self._kept = np.empty((0, self.width, 3), np.uint8)
        self._first = 0  # the row that `_kept` begins with
        # Given all rows once: where they begin, and (h, width, 3).
        self.watched_by: Callable[[int, UInt8], None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._region = self._image = None
        self._file.close()

    def rows(self, first: int, last: int, /) -> UInt8:
        """(last - first, width, 3); none of a later call begins above `first`: what lies above is forgotten."""
        if first < self._first:
            raise ValueError(f"row {first} was forgotten")
        self._kept = self._kept[first - self._first :]
        self._first = first
        if (there := first + len(self._kept)) < last:
            self._kept = np.concatenate([self._kept, *self._decoded(there, last)])
        return self._kept[: last - first]

    def bands(self) -> Iterator[UInt8]:
        """(h, width, 3): the whole image, some rows at once."""
        return self._decoded(0, self.height)

    def _decoded(self, first: int, last: int) -> Iterator[UInt8]:
        height = max(1, _BYTES_AT_ONCE // (self.width * self._image.bands))
        kind, largest = _DEPTHS[self._image.format]
        for top in range(first, last, height):
            count = min(height, last - top)
            with self._refusing():
                data = self._region.fetch(0, top, self.width, count)
            pixels = np.frombuffer(data, kind).reshape(count, self.width, -1)
            pixels = pixels[..., :1] if pixels.shape[2] <= _GREY else pixels[..., :3]
            if kind is np.uint16:
                pixels = (pixels.astype(np.uint32) * 255 + largest // 2) // largest
            rows = np.broadcast_to(pixels, (count, self.width, 3)).astype(np.uint8)
            if self.watched_by is not None:
                self.watched_by(top, rows)
            yield rows

    def _require_usable(self) -> None:
        image, name = self._image, shown(self._path)
        if image.format not in _DEPTHS or image.interpretation not in _COLOURS or image.bands > 4:  # noqa: PLR2004
            about = f"{image.bands} bands of {image.format}, {image.interpretation}"
            raise InvalidFileError(f"{name} cannot be read: its pixels are {about}.", _SAVE_ANEW)
        if image.get_typeof(_ORIENTATION) and image.get(_ORIENTATION) > 1:
            raise InvalidFileError(
                f"{name} cannot be read: it lies on its side (EXIF), and is too large to be turned.",
                "Save it upright.",
            )

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            reason = shown(" ".join(str(error).split()).rstrip("."))
            raise InvalidFileError(
                f"{shown(self._path)} cannot be read: {reason}.", "Replace the file: it is damaged, or no image."
            ) from error


def resized(image: HugeImage, *, height: int, width: int) -> UInt8:
    """(height, width, 3), stretched by Pillow's antialiased bilinear: every pixel as `images.to_network_size` has it.

    Pillow resizes the rows first, each alone, and then the columns; of an image many times as tall as wide it begins
    with the columns, and values are then up to 1 apart.
    """
    narrow = [
        np.asarray(Image.fromarray(band).resize((width, len(band)), Image.Resampling.BILINEAR))
        for band in image.bands()
    ]
    return np.array(Image.fromarray(np.concatenate(narrow)).resize((width, height), Image.Resampling.BILINEAR))
