"""One way to read an image, one way to resize it, one way to write a mask."""

import dataclasses
import functools
import io
import os
import stat
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NoReturn, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

from segdeploy import image_files, png
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.image_files import (
    WIDE_MODES,
    RefusedError,
    arguments,
    load,
    opened,
    raw_mode,
    require_size,
    set_raw_modes,
)
from segdeploy.paths import shown
from segdeploy.spec import MAX_CLASSES

UInt8: TypeAlias = NDArray[np.uint8]
Colours: TypeAlias = Sequence[tuple[int, int, int]]
T = TypeVar("T")
Photo: TypeAlias = UInt8 | Image.Image | os.PathLike[str] | str

EXTENSIONS = image_files.EXTENSIONS
RANK = 3  # of a photograph: height, width, and as many channels

_COLOUR_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
_SIDEWAYS = {5, 6, 7, 8}  # orientations of EXIF that exchange height and width
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BAND_ROWS, _BAND_PIXELS = 64, 2**18  # converted at once, at least: no second full-size copy
_LONGEST_JPEG_SIDE = 65_500
_MASK, _OVERLAY = "segdeploy mask", b"segdeploy overlay"  # what our files say of themselves
_PNG_MARK = b"tEXtSoftware\0" + _MASK.encode()
_JPEG_MARK = b"\xff\xfe" + (2 + len(_OVERLAY)).to_bytes(2, "big") + _OVERLAY
_MARKED = 128  # bytes: what Pillow writes before our mark takes fewer

# Pillow keeps the high byte of 16-bit colour. The other byte order gives the low one; ARGB finds it in grey + alpha.
_LOW_BYTE = {
    f"{bands};16{order}": f"{bands};16{other}"
    for bands in ("RGB", "RGBA", "RGBX", "R", "G", "B", "A")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
} | {"LA;16B": "ARGB"}


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A decoded photograph, upright: resized for a network; its pixels are copied out where asked for.

    `decoded`: uint8 RGB (H, W, 3), or a Pillow image of mode RGB: resizing that saves two copies of every pixel.
    `height` and `width` are the photograph's own, in pixels; what was decoded is smaller where a scale was allowed, and
    then `path` is read once more for its pixels.
    """

    decoded: UInt8 | Image.Image
    height: int
    width: int
    path: Path | None = None

    @classmethod
    def of(cls, photo: UInt8) -> "Photograph":
        return cls(photo, *photo.shape[:2])

    @functools.cached_property
    def pixels(self) -> UInt8:
        """(height, width, 3) RGB."""
        if not isinstance(self.decoded, Image.Image):
            return self.decoded
        if self.path is not None and self.decoded.size != (self.width, self.height):
            return read(self.path)
        return _rgb(self.decoded, largest=255)

    def resized(self, *, height: int, width: int) -> UInt8:
        """(height, width, 3), stretched by Pillow's antialiased bilinear."""
        if not isinstance(self.decoded, Image.Image):
            return to_network_size(self.decoded, height=height, width=width)
        if self.decoded.size == (width, height):
            return np.array(self.decoded)
        return np.array(self.decoded.resize((width, height), Image.Resampling.BILINEAR))


def read(path: Path | str) -> UInt8:
    """(H0, W0, 3) RGB of the first frame, upright by its EXIF orientation; alpha is dropped, 16 bits divided by 257.

    Raise InvalidRequestError for a path that is no file, InvalidFileError for a file that gives no whole image.
    """
    return opened_photograph(Path(path)).pixels


def opened_photograph(path: Path, *, least: tuple[int, int] | None = None, most: int | None = None) -> Photograph:
    """As `read`, decoded and not yet copied. Raise as `read` does.

    `most`: of so many pixels; where there are more that can be read in rows, the error's cause is an InRowsError.
    `least`: a JPEG may be decoded at a half, a quarter or an eighth of its scale (libjpeg does that in the transform)
    as long as it keeps so many pixels, (height, width), of the upright photograph.
    """
    return _decoded(path, lambda file, suffix: _photograph(file, suffix, path, least, most))


def to_rgb(photo: object) -> UInt8:
    """(H0, W0, 3) RGB of a path, of a Pillow image (upright, as `read` gives it), or of uint8 RGB (H0, W0, 3) as it is.

    Raise InvalidRequestError for anything else, and what `read` raises for a path.
    """
    if isinstance(photo, str | os.PathLike):
        return read(Path(photo))
    if isinstance(photo, Image.Image):
        return _of_pillow(photo)
    if not isinstance(photo, np.ndarray):
        _refuse_kind(type(photo).__name__)
    if photo.dtype != np.uint8 or photo.ndim != RANK or photo.shape[2] != RANK or not photo.size:
        _refuse_kind(f"{photo.dtype} {photo.shape}")
    return photo


def _of_pillow(photo: Image.Image) -> UInt8:
    if not photo.width * photo.height:
        _refuse_kind(f"an image of {photo.width}x{photo.height}")
    try:
        photo.load()
        return _upright(_rgb(photo, largest=65535), orientation(photo))
    except (RefusedError, OSError, ValueError, SyntaxError) as error:
        reason = shown(" ".join(str(error).split())).rstrip(".")
        raise InvalidRequestError(f"the image cannot be used: {reason}.", "Give it as RGB of 8 bits.") from error


def _refuse_kind(given: str) -> NoReturn:
    raise InvalidRequestError(
        f"a photograph is a path, a Pillow image or uint8 RGB (H, W, 3), not {given}.",
        "Read it with segdeploy.read_image, or convert it.",
    )


def read_mask(path: Path) -> UInt8:
    """(H0, W0) class indices, upright as a photo is; the palette's colours do not matter. Raise as `read` does."""
    return _decoded(path, _to_indices)


def looked_at(path: Path, look: Callable[[ImageFile.ImageFile, IO[bytes]], T]) -> T:
    """What `look` finds in an image whose pixels are not decoded yet, and in its file. Raise as `read` does."""
    return _decoded(path, lambda file, suffix: look(opened(file, suffix), file))


def to_network_size(photo: UInt8, *, height: int, width: int) -> UInt8:
    """(H0, W0, 3) -> (height, width, 3), stretched by Pillow's antialiased bilinear."""
    if photo.shape[:2] == (height, width):
        return photo
    return np.array(Image.fromarray(photo).resize((width, height), Image.Resampling.BILINEAR))


def to_photo_size(class_map: UInt8, *, height: int, width: int) -> UInt8:
    """(H, W) -> (height, width) by nearest neighbour, as Pillow takes it."""
    if class_map.shape == (height, width):
        return class_map
    rows, columns = (nearest(*sizes) for sizes in zip(class_map.shape, (height, width), strict=True))
    return class_map.take(columns, axis=1).take(rows, axis=0)  # columns of few rows, then whole rows: twice as fast


def nearest(size: int, target: int) -> NDArray[np.intp]:
    """Of each of `target` places the one of `size` that lies there; summed step by step, as Pillow does."""
    steps = np.full(target, size / target)
    steps[0] /= 2
    return np.minimum(np.cumsum(steps).astype(np.intp), size - 1)


def mask_png(class_map: UInt8, colours: Colours) -> bytes:
    """Encode as a palette PNG of 8 bits whose indices are the class map; classes without a colour are black.

    A tEXt chunk says that it is a mask, for `is_ours`.
    """
    return png.palette_png(class_map, _palette(colours), [("Software", _MASK)])


def mask_writer(file: IO[bytes], height: int, width: int, colours: Colours) -> png.PaletteWriter:
    """The same file, for a class map that comes in rows."""
    return png.PaletteWriter(file, height, width, _palette(colours), [("Software", _MASK)])


def overlay(photo: UInt8, class_map: UInt8, colours: Colours, *, opacity: float = 0.5) -> UInt8:
    """(H0, W0, 3) photo and (H0, W0) class map -> the photo tinted with the colours, but where a class is black."""
    palette = _palette(colours)
    share = palette.any(axis=1, keepdims=True) * np.uint16(round(opacity * 256))  # 255 * 256 + 128 fits 16 bits
    tint, kept = palette * share + np.uint16(128), np.uint16(256) - share
    tinted = np.empty_like(photo)
    rows = 16  # three times as fast as whole images: the 16-bit sums stay in the cache
    for top in range(0, len(photo), rows):
        band = photo[top : top + rows] * kept.take(class_map[top : top + rows], axis=0)
        band += tint.take(class_map[top : top + rows], axis=0)
        tinted[top : top + rows] = band >> 8
    return tinted


def overlay_jpeg(
    photo: UInt8, class_map: UInt8, colours: Colours, *, opacity: float = 0.5, beside: bool = False
) -> bytes:
    """The photo tinted with its classes, to the right of the photo itself where it is `beside` it."""
    height, width = photo.shape[0], photo.shape[1] * (1 + beside)
    if max(height, width) > _LONGEST_JPEG_SIDE:
        raise InvalidRequestError(
            f"an overlay of {width}x{height} is too long: JPEG holds {_LONGEST_JPEG_SIDE} pixels a side.",
            "Leave the overlay out, or cut the photo into tiles.",
        )
    tinted = overlay(photo, class_map, colours, opacity=opacity)
    return jpeg(np.concatenate([photo, tinted], axis=1) if beside else tinted, comment=_OVERLAY)


def jpeg(photo: UInt8, *, comment: bytes = b"") -> bytes:
    """Encode (H0, W0, 3), at most 65,500 pixels a side."""
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "JPEG", quality=90, comment=comment)
    return buffer.getvalue()


def is_ours(path: Path) -> bool:
    """Whether a file says that it is a mask or an overlay of `infer`; one that cannot be read does not."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            start = file.read(_MARKED)
    except (OSError, ValueError):
        return False
    if start.startswith(b"\x89PNG"):
        return _PNG_MARK in start
    return start.startswith(b"\xff\xd8") and _JPEG_MARK in start


_filters_lock = threading.Lock()


def _decoded(path: Path, decode: Callable[[IO[bytes], str], T]) -> T:
    _require_file(path)
    try:
        return _attempted(path, decode)
    except Warning:
        # Only where warnings are errors: Pillow meant to go on. The filters are global, so threads take turns here.
        with _filters_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _attempted(path, decode)


def _attempted(path: Path, decode: Callable[[IO[bytes], str], T]) -> T:
    try:
        with path.open("rb") as file:
            return decode(file, path.suffix.lower())
    except Warning:
        raise
    except PermissionError as error:
        _refuse(path, "no permission to read it", "Give this user the right to read it.", error)
    except RefusedError as error:
        _refuse(path, str(error), error.remedy, error)
    except Image.DecompressionBombError as error:
        _refuse(path, str(error), "Scale it down or cut it into tiles.", error)
    except Exception as error:  # noqa: BLE001 - Pillow's plug-ins raise whatever their parsing runs into
        _refuse(path, str(error) or type(error).__name__, "Replace the file, or save it anew as PNG or JPEG.", error)


def _refuse(path: Path, reason: str, remedy: str, error: Exception) -> NoReturn:
    traceback.clear_frames(error.__traceback__)  # a kept error would keep its half-read image
    what = f"{shown(path)} cannot be read: {shown(' '.join(reason.split())).rstrip('.')}."
    raise InvalidFileError(what, remedy) from error


def _require_file(path: Path) -> None:
    name = shown(path)
    try:
        facts = path.stat()
    except PermissionError as error:
        _refuse(path, "no permission to look into its folder", "Give this user the right to enter the folder.", error)
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"{name} does not exist.", "Give the path of an image.") from error
    if stat.S_ISDIR(facts.st_mode):
        raise InvalidRequestError(f"{name} is a folder.", "Give the path of an image, or the right to look into it.")
    if not stat.S_ISREG(facts.st_mode):
        raise InvalidRequestError(f"{name} is no file.", "Give the path of an image.")
    if not facts.st_size:
        raise InvalidFileError(f"{name} cannot be read: the file is empty.", "Bring the image again.")


def _photograph(
    file: IO[bytes], suffix: str, path: Path, least: tuple[int, int] | None, most: int | None
) -> Photograph:
    image = opened(file, suffix, bounded=False)
    stored = raw_mode(image)
    size = image.size
    require_size(image, file, most, is_turned=lambda: orientation(image) != 1)
    if least is not None:
        _scale(image, least)
    load(image, file)
    turned = orientation(image)
    if stored not in _LOW_BYTE and image.mode == "RGB":
        height, width = _turned(size[::-1], turned)
        return Photograph(image.transpose(_TURNS[turned]) if turned in _TURNS else image, height, width, path)
    pixels = _rgb(image, largest=4095 if stored == "I;12" else 65535)
    if stored in _LOW_BYTE:
        del image
        _round_to_nearest(pixels, _low_bytes(file, suffix), channels=1 if stored == "LA;16B" else 3)
    return Photograph.of(_upright(pixels, turned))


def _scale(image: ImageFile.ImageFile, least: tuple[int, int]) -> None:
    """Have a colour JPEG decoded at the smallest scale that keeps as many pixels; others have no such scale."""
    if image.format in {"JPEG", "MPO"} and image.mode == "RGB":
        height, width = _turned(least, orientation(image))
        image.draft(image.mode, (width, height))


def _turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Height and width, exchanged where the orientation lays the photograph on its side."""
    return size[::-1] if orientation in _SIDEWAYS else size


def orientation(image: Image.Image) -> int:
    """1 where EXIF is missing or broken. Ask after `load`: it turns a TIFF, and finds EXIF at the end of a PNG."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Warning:
        raise
    except Exception:  # noqa: BLE001 - broken EXIF fails in as many ways as broken images
        return 1
    return value if isinstance(value, int) else 1


def _upright(pixels: UInt8, orientation: int) -> UInt8:
    if orientation in {3, 4, 6, 7}:
        pixels = pixels[::-1]
    if orientation in {2, 3, 7, 8}:
        pixels = pixels[:, ::-1]
    if orientation in _SIDEWAYS:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels)


def _rgb(image: Image.Image, *, largest: int) -> UInt8:
    """`largest` is the value that a wide grey image calls white."""
    wide = image.mode in WIDE_MODES or (image.mode == "I" and image.format == "PPM")  # a PGM of more than 8 bits
    if not wide and image.mode not in _COLOUR_MODES:
        raise RefusedError(
            f"its pixels are {'floats' if image.mode == 'F' else f'of mode {image.mode}'}, whose range is unknown",
            "Save it anew with 8 or 16 bits, scaled as the network was trained.",
        )
    image.info.pop("transparency", None)  # or Pillow warns that an RGB image cannot hold it
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for rows, band in _bands(image):
        pixels[rows] = _to_8_bits(band, largest) if wide else _to_colour(band)
    return pixels


def _to_colour(image: Image.Image) -> UInt8:
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _bands(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    rows = max(_BAND_ROWS, _BAND_PIXELS // image.width)  # of an image one pixel wide, as damaged files declare it
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def _to_8_bits(grey: Image.Image, largest: int) -> UInt8:
    """(h, w) -> (h, w, 1), to the nearest; no value lies half-way."""
    return ((np.asarray(grey).astype(np.uint32) * 255 + largest // 2) // largest).astype(np.uint8)[..., None]


def _low_bytes(file: IO[bytes], suffix: str) -> Image.Image:
    image = opened(file, suffix)
    set_raw_modes(image, _LOW_BYTE)
    image.load()
    return image


def _round_to_nearest(pixels: UInt8, low_bytes: Image.Image, *, channels: int) -> None:
    """(256 high + low) / 257 is high + (low - high) / 257: from a difference of 129 on, the nearest is one away."""
    for rows, band in _bands(low_bytes):
        difference = np.asarray(band)[..., :channels].astype(np.int16) - pixels[rows]
        pixels[rows] += difference > 128  # noqa: PLR2004
        pixels[rows] -= difference < -128  # noqa: PLR2004


def _to_indices(file: IO[bytes], suffix: str) -> UInt8:
    image = opened(file, suffix)
    if is_lossy(image):
        reason = f"a mask holds class numbers, and JPEG changes them ({image.format})"
        raise RefusedError(reason, "Make the masks anew as PNG, from where they were drawn.")
    stored, stretched = _grey_range(image)
    load(image, file)
    if image.mode not in {"P", "L", "1", "I"} | WIDE_MODES:
        raise RefusedError(
            f"a mask holds class numbers, this one has pixels of mode {image.mode}",
            "Give index masks: one channel, each value the number of a class.",
        )
    indices = np.asarray(image)
    if image.mode not in {"P", "1"} and stored != stretched:
        indices = (indices.astype(np.int64) * stored + stretched // 2) // stretched
    if indices.min() < 0 or indices.max() >= MAX_CLASSES:
        raise RefusedError(
            f"a mask holds class numbers up to {MAX_CLASSES - 1}, this one has values from {indices.min()} to"
            f" {indices.max()}",
            "Give index masks: one channel, each value the number of a class.",
        )
    return _upright(indices.astype(np.uint8), orientation(image))


def is_lossy(image: Image.Image) -> bool:
    """Whether it is stored in a way that changes its values; a TIFF may hold JPEG."""
    return image.format in {"JPEG", "MPO", "JPEG2000"} or image.info.get("compression") == "jpeg"


def _grey_range(image: ImageFile.ImageFile) -> tuple[int, int]:
    """Largest value stored, and what Pillow stretches it to: in grey of 2 and 4 bits, and in PGM."""
    stored = raw_mode(image)
    if stored.startswith(("L;2", "L;4")):
        return 2 ** int(stored[2]) - 1, 255
    if image.tile and image.tile[0][0] in {"ppm", "ppm_plain"} and image.mode != "1":
        return int(arguments(image.tile[0])[-1]), 65535 if image.mode == "I" else 255
    return 255, 255


def _palette(colours: Colours) -> UInt8:
    """(256, 3): a class map may hold any uint8, and Pillow packs fewer than 17 colours into 4 bits."""
    palette = np.zeros((MAX_CLASSES, 3), np.uint8)
    palette[: len(colours)] = colours
    return palette
