"""Images too large for memory, read from the top down: no more than a few rows of them are held.

PNG and JPEG by libvips. TIFF by GDAL: of a tile that it cannot decode libvips makes zeros without a word.
"""

import contextlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segdeploy import extras
from segdeploy.errors import InvalidFileError
from segdeploy.paths import shown

UInt8: TypeAlias = NDArray[np.uint8]

LARGEST_IN_MEMORY = 2**26  # pixels: 8192x8192; larger ones are read from the top down, where that can be done
LONGEST_SIDE = 300_000  # pixels: of wider and taller ones a few rows, or columns, are too large as well
_BYTES_AT_ONCE = 2**20  # decoded at once
_CACHE = 2**24  # bytes of decoded tiles that GDAL keeps besides a row of them; it asks for a twentieth of the memory
_ROWS_AT_ONCE = 64  # of a row of tiles, given on: no second copy of it
_GREY = 2  # bands, or fewer: grey, and alpha
_DAMAGED = "Replace the file: it is damaged."


def is_installed() -> bool:
    """Whether what reads them is here: `pip install segdeploy[huge]`."""
    return all(importlib.util.find_spec(module) is not None for module in ("pyvips", "rasterio"))


class _Decoder(Protocol):
    height: int
    width: int
    rows_at_once: int

    def rows(self, first: int, count: int) -> NDArray[Any]:
        """(count, width, bands) of 8 or 16 bits; asked for from the top down."""

    def close(self) -> None: ...


class HugeImage:
    """An image whose rows are asked for from the top down; a context manager.

    RGB; alpha is dropped and 16 bits are divided by 257, as `images.read` does, which says what may be read so. Raise
    InvalidFileError for a file that cannot be decoded.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            is_tiff = file.read(2) in {b"II", b"MM"}
        with self._refusing():
            self._decoder: _Decoder = _Tiff(path) if is_tiff else _PngOrJpeg(path)
        self.height, self.width = self._decoder.height, self._decoder.width
        self._require_sides()
        self._kept = np.empty((0, self.width, 3), np.uint8)
        self._first = 0  # the row that `_kept` begins with
        # Given all rows once: where they begin, and (h, width, 3).
        self.watched_by: Callable[[int, UInt8], None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._decoder.close()

    def rows(self, first: int, last: int, /) -> UInt8:
        """(last - first, width, 3); none of a later call begins above `first`: what lies above is forgotten."""
        if first < self._first:
            raise ValueError(f"row {first} was forgotten")
        kept = self._kept[first - self._first :]
        self._first = first
        if (there := first + len(kept)) < last:
            end = min(self.height, -(-last // self._decoder.rows_at_once) * self._decoder.rows_at_once)
            self._kept = np.empty((end - first, self.width, 3), np.uint8)
            self._kept[: len(kept)] = kept
            for rows in self._decoded(there, last):
                self._kept[there - first : there - first + len(rows)] = rows
                there += len(rows)
        else:
            self._kept = kept
        return self._kept[: last - first]

    def bands(self) -> Iterator[UInt8]:
        """(h, width, 3): the whole image, some rows at once."""
        return self._decoded(0, self.height)

    def _decoded(self, first: int, last: int) -> Iterator[UInt8]:
        """At least the rows to `last`: as many more as are decoded with them."""
        while first < last:
            count = min(self._decoder.rows_at_once - first % self._decoder.rows_at_once, self.height - first)
            with self._refusing():
                pixels = self._decoder.rows(first, count)
            for top in range(0, count, _ROWS_AT_ONCE):
                rows = _rgb(pixels[top : top + _ROWS_AT_ONCE])
                if self.watched_by is not None:
                    self.watched_by(first + top, rows)
                yield rows
            first += count

    def _require_sides(self) -> None:
        if max(self.height, self.width) > LONGEST_SIDE:
            self._decoder.close()
            size = f"it is {self.width}x{self.height}, longer than {LONGEST_SIDE:,} pixels"
            raise InvalidFileError(f"{shown(self._path)} cannot be read: {size}.", "Cut it into shorter pieces.")

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except _UndecodableError as error:
            reason = shown(" ".join(str(error).split()).rstrip("."))
            raise InvalidFileError(f"{shown(self._path)} cannot be read: {reason}.", _DAMAGED) from error


def _rgb(pixels: NDArray[Any]) -> UInt8:
    """(h, width, bands) of 8 or 16 bits -> (h, width, 3) of 8."""
    pixels = pixels[..., :1] if pixels.shape[2] <= _GREY else pixels[..., :3]
    if pixels.dtype == np.uint16:
        pixels = (pixels.astype(np.uint32) * 255 + 65535 // 2) // 65535
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3)).astype(np.uint8)


class _UndecodableError(Exception):
    """What a library says of a file."""


class _PngOrJpeg:
    def __init__(self, path: Path) -> None:
        self._vips = _pyvips()
        self._file = path.open("rb")
        try:
            # By its number: a name may be no UTF-8, and libvips takes brackets in one for options.
            source = self._vips.Source.new_from_descriptor(self._file.fileno())
            image: Any = self._vips.Image.new_from_source(source, "", access="sequential", fail_on="warning")
            self._region = self._vips.Region.new(image)
        except self._vips.Error as error:
            self._file.close()
            raise _UndecodableError(str(error)) from error
        self._type = np.uint16 if image.format == "ushort" else np.uint8
        self.height, self.width = int(image.height), int(image.width)
        self.rows_at_once = max(1, _BYTES_AT_ONCE // (self.width * image.bands))

    def rows(self, first: int, count: int) -> NDArray[Any]:
        try:
            data = self._region.fetch(0, first, self.width, count)
        except self._vips.Error as error:
            raise _UndecodableError(str(error)) from error
        return np.frombuffer(data, self._type).reshape(count, self.width, -1)

    def close(self) -> None:
        self._region = None
        self._file.close()


def _pyvips() -> ModuleType:
    try:
        import pyvips
    except (ImportError, OSError) as error:  # the package is here, and the library is not
        raise extras.broken("pyvips", error) from error
    pyvips.block_untrusted_set(True)  # noqa: FBT003 - libvips' own: no loader that was never meant for strangers' files
    pyvips.cache_set_max(0)
    found: ModuleType = pyvips
    return found


class _Tiff:
    """Some rows at once, out of a row of tiles or a strip."""

    def __init__(self, path: Path) -> None:
        import rasterio
        import rasterio.windows

        self._rasterio = rasterio
        self._stack = contextlib.ExitStack()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                self._file: Any = self._stack.enter_context(rasterio.open(path, driver="GTiff"))
        except rasterio.errors.RasterioError as error:
            raise _UndecodableError(_said(error)) from error
        self.height, self.width = int(self._file.height), int(self._file.width)
        block = int(self._file.block_shapes[0][0])
        of_a_row = self.width * self._file.count * np.dtype(self._file.dtypes[0]).itemsize
        self._cache = _CACHE + of_a_row * block  # GDAL keeps a row of tiles, so that none is decoded twice
        self.rows_at_once = min(block, max(1, 16 * _BYTES_AT_ONCE // of_a_row))
        is_palette = self._file.colorinterp[0] == rasterio.enums.ColorInterp.palette
        self._palette = self._colours() if is_palette else None

    def _colours(self) -> UInt8:
        palette = np.zeros((256, 3), np.uint8)
        for value, colour in self._file.colormap(1).items():
            palette[value] = colour[:3]
        return palette

    def rows(self, first: int, count: int) -> NDArray[Any]:
        window = self._rasterio.windows.Window(0, first, self.width, count)
        try:
            with self._rasterio.Env(GDAL_CACHEMAX=self._cache, GDAL_ERROR_ON_LIBJPEG_WARNING=True):
                bands: NDArray[Any] = self._file.read(window=window)
        except self._rasterio.errors.RasterioError as error:
            raise _UndecodableError(_said(error)) from error
        return bands.transpose(1, 2, 0) if self._palette is None else self._palette[bands[0]]

    def close(self) -> None:
        self._stack.close()


def _said(error: BaseException) -> str:
    """What GDAL says itself, which is not always what rasterio passes on."""
    return str(error.__cause__ or error)


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
