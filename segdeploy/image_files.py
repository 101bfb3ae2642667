"""Opens image files: the format is that of the content, decoded in this process; a damaged file is refused."""

import ctypes
import functools
import importlib
import io
import re
import struct
import threading
import zlib
from collections.abc import Callable, Mapping
from typing import IO, Any

from PIL import Image, ImageChops, ImageFile, JpegImagePlugin, TiffImagePlugin, _imaging

MAX_PIXELS = 150_000_000
_PLAIN_TIFF, _YCBCR, _JPEG_IN_TIFF = {1, 2, 3}, 6, 7  # of TIFF 6.0: grey from black, RGB, palette; compression
WIDE_MODES = {"I;16", "I;16B", "I;16L", "I;16N"}

# Pillow decodes these inside this process: EPS and WMF call other programs, its other formats hold no photographs.
_SUFFIXES = {
    "PNG": {".png", ".apng"},
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"},
    "JPEG2000": {".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"},
    "WEBP": {".webp"},
    "AVIF": {".avif", ".avifs"},
    "GIF": {".gif"},
    "TIFF": {".tif", ".tiff"},
    "BMP": {".bmp"},
    "DIB": {".dib"},
    "ICO": {".ico"},
    "PSD": {".psd"},
    "QOI": {".qoi"},
    "PPM": {".ppm", ".pgm", ".pbm", ".pnm"},
    "TGA": {".tga", ".icb", ".vda", ".vst"},
    "HEIF": {".heic", ".heics", ".heif", ".heifs", ".hif"},
    "JXL": {".jxl"},
}
# Formats that Pillow reads by a package of its own: what they are called, the module, what is installed.
_PLUGINS = {
    "HEIF": ("HEIC", "pillow_heif", "pillow-heif"),
    "JXL": ("JPEG XL", "pillow_jxl", "pillow-jxl-plugin"),
}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}
_JXL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
_JPEG_SEGMENT = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])", re.DOTALL)  # neither a stuffed 0xff nor a restart
_JPEG_START, _JPEG_END, _JPEG_LONE = b"\xd8", b"\xd9", b"\x01"
_JPEG_SEQUENTIAL = {b"\xc0", b"\xc1"}
_FILLER = bytes(range(1, 255)) * 4  # no marker in it
EXTENSIONS = frozenset().union(*_SUFFIXES.values())


class RefusedError(Exception):
    """A reason and a remedy, before the path is put in front."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


class TooLargeError(RefusedError):
    """It has more pixels than are read at once."""


class InRowsError(TooLargeError):
    """And they can be read in rows."""


def opened(file: IO[bytes], suffix: str, *, bounded: bool = True) -> ImageFile.ImageFile:
    """Do as `Image.open`, without its warning from 89 megapixels on and with the plug-in's reason where it fails."""
    Image.init()
    file.seek(0)
    start = file.read(256)
    _require_plugin(start)
    reasons = ["its content is no image of a known format"]
    for name, suffixes in _SUFFIXES.items():
        factory, accepts = Image.OPEN.get(name, (None, None))
        known = accepts(start[:16]) if accepts else suffix in suffixes  # only TGA has no mark of its own
        if isinstance(known, str):  # this Pillow was built without the decoder
            reasons.append(known)
        if factory is None or not known or isinstance(known, str):
            continue
        if name == "TIFF":
            _hear_libtiff()
        file.seek(0)
        try:
            image = factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            reasons.append(f"{name}: {error}")
        else:
            if bounded:
                require_bounded(image)
            _mend_planes(image)
            return image
    raise RefusedError(reasons[-1], "Replace the file, or save it anew as PNG or JPEG.")


def _require_plugin(start: bytes) -> None:
    """Have the package that reads HEIC or JPEG XL take its place in Pillow. Raise RefusedError where it is missing."""
    if (name := _format_of_a_plugin(start)) is None:
        return
    called, module, package = _PLUGINS[name]
    try:
        plugin = importlib.import_module(module)
    except ImportError as error:
        raise RefusedError(
            f"it is {called}, which Pillow reads with another package (pip install {package})",
            f"Install it: pip install {package}. Or save the image as PNG or JPEG.",
        ) from error
    if name not in Image.OPEN and name == "HEIF":
        plugin.register_heif_opener()


def _format_of_a_plugin(start: bytes) -> str | None:
    if start.startswith(_JXL_STARTS):
        return "JXL"
    if start[4:8] != b"ftyp":
        return None
    size = min(int.from_bytes(start[:4], "big"), len(start))
    brands = {start[8:12], *(start[at : at + 4] for at in range(16, size - 3, 4))}
    return "HEIF" if brands & _HEIC_BRANDS and not brands & _AVIF_BRANDS else None


class _LibtiffErrors(threading.local):
    """Of this thread: the part of libtiff that first found something wrong, empty where none did."""

    first = ""


_libtiff_errors = _LibtiffErrors()


def _note_libtiff_error(part: bytes | None, _form: bytes | None, _values: int | None) -> None:
    _libtiff_errors.first = _libtiff_errors.first or (part or b"libtiff").decode(errors="replace")


_error_handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)(_note_libtiff_error)


@functools.cache
def _hear_libtiff() -> None:
    """Have libtiff tell us of its errors: it prints them to fd 2, with its warnings, and Pillow goes on after some."""
    pillow = ctypes.CDLL(_imaging.__file__)
    for name, handler in (("TIFFSetWarningHandler", None), ("TIFFSetErrorHandler", _error_handler)):
        set_handler = getattr(pillow, name, None)  # a Pillow without libtiff has none
        if set_handler is not None:
            set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            set_handler(None if handler is None else ctypes.cast(handler, ctypes.c_void_p))


def require_bounded(image: Image.Image, why: str = "") -> None:
    """Raise TooLargeError where it is too large to be read whole; `why` it is not read in rows."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise TooLargeError(
            f"it declares {width}x{height} pixels, more than {MAX_PIXELS:,}{why}", "Scale it down or cut it into tiles."
        )


def require_size(
    image: ImageFile.ImageFile, file: IO[bytes], most: int | None, *, is_turned: Callable[[], bool]
) -> None:
    """Raise InRowsError above `most` pixels if they can be read so, else TooLargeError where they are too many."""
    why = ""
    if most is not None and image.width * image.height > most:
        obstacle = _obstacle_to_rows(image, file) or ("its EXIF turns it" if is_turned() else None)
        if obstacle is None:
            raise InRowsError(f"it has more than {most:,} pixels", "Scale it down, or cut it into tiles.")
        why = f", and it is not read in rows: {obstacle}"
    require_bounded(image, why)


def _obstacle_to_rows(image: ImageFile.ImageFile, file: IO[bytes]) -> str | None:
    """Why an image is not read in rows (`huge_images`); None where its pixels are then those that Pillow gives."""
    if image.format == "PNG":
        return "its EXIF comes last" if _has_exif_behind_pixels(file) else None
    if image.format in {"JPEG", "MPO"}:
        return None if image.mode in {"RGB", "L"} else f"its colours are {image.mode}"
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return f"it is {image.format}"
    return None if _is_plain_tiff(image) else "its TIFF is none of 8 or 16 bits in grey, RGB or a palette"


def _is_plain_tiff(image: TiffImagePlugin.TiffImageFile) -> bool:
    tags = image.tag_v2
    is_jpeg = tags.get(TiffImagePlugin.COMPRESSION) == _JPEG_IN_TIFF
    meanings = _PLAIN_TIFF | ({_YCBCR} if is_jpeg else set())
    depths = set(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    formats = set(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,)))
    is_premultiplied = bool(tags.get(TiffImagePlugin.EXTRASAMPLES, (0,))[0] == 1)
    meaning = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION)
    return meaning in meanings and depths in ({8}, {16}) and formats == {1} and not is_premultiplied


def _has_exif_behind_pixels(png: IO[bytes]) -> bool:
    """Pillow finds it once the pixels are decoded."""
    png.seek(8)
    has_pixels = False
    while len(head := png.read(8)) == 8:  # noqa: PLR2004 - length and kind, four bytes each
        length, kind = struct.unpack(">I4s", head)
        has_pixels = has_pixels or bool(kind == b"IDAT")
        if kind == b"eXIf":
            return has_pixels
        png.seek(length + 4, io.SEEK_CUR)
    return False


def _mend_planes(image: ImageFile.ImageFile) -> None:
    """Pillow takes 16-bit colours that a TIFF stores in planes for 8-bit ones."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or raw_mode(image) != "R":
        return
    if max(image.tag_v2[TiffImagePlugin.BITSPERSAMPLE]) > 8:  # noqa: PLR2004
        order = "L" if image.tag_v2.prefix == TiffImagePlugin.II else "B"
        set_raw_modes(image, {band: f"{band};16{order}" for band in "RGBA"})


def set_raw_modes(image: ImageFile.ImageFile, replacements: Mapping[str, str]) -> None:
    for place, tile in enumerate(image.tile):
        stored, *others = arguments(tile)
        image.tile[place] = tile._replace(args=(replacements[stored], *others))


def load(image: ImageFile.ImageFile, file: IO[bytes]) -> None:
    _libtiff_errors.first = ""
    image.load()
    require_bounded(image)
    if _libtiff_errors.first:
        damaged = f"its pixel data is damaged ({_libtiff_errors.first})"
        raise RefusedError(damaged, "Replace the file, or save it anew as PNG or JPEG.")
    if image.format == "PNG":
        _require_checksums(file)
    if image.format in {"JPEG", "MPO"}:
        _require_end(image, file)
    if image.format == "JPEG2000" and image.mode not in WIDE_MODES:
        _require_8_bits(file)


def _require_checksums(png: IO[bytes]) -> None:
    """Pillow skips the checksums of pixel data, and one flipped bit in ten still inflates to something."""
    png.seek(8)
    while len(head := png.read(8)) == 8:  # noqa: PLR2004 - length and kind, four bytes each
        length, kind = struct.unpack(">I4s", head)
        if kind != b"IDAT":
            png.seek(length + 4, io.SEEK_CUR)
        elif zlib.crc32(png.read(length), zlib.crc32(kind)) != int.from_bytes(png.read(4), "big"):
            raise RefusedError("its pixel data fails its checksum", "Replace the file: it is damaged.")


def _require_end(image: ImageFile.ImageFile, jpeg: IO[bytes]) -> None:
    """Refuse a JPEG of which the lower part would be grey without a word.

    Pillow reads zeros as pixels, and makes up what is missing before an end marker. Of a progressive file only the
    marker is looked for: what it lacks may be details of every block.
    """
    jpeg.seek(0)
    content = jpeg.read()
    end, is_sequential = _end_of(content)
    if end is None:
        raise RefusedError("its end is missing, or filled with zeros", "Replace the file: it is damaged.")
    if is_sequential and _ends_flat(image) and _depends_on_what_follows(image, content[:end]):
        raise RefusedError("its last rows are missing", "Replace the file: it is damaged.")


def _end_of(jpeg: bytes) -> tuple[int | None, bool]:
    """Where the end marker of the first picture lies; whether that is sequential, in Huffman codes (ITU T.81, B.1)."""
    position, is_sequential = 0, False
    while (segment := _JPEG_SEGMENT.search(jpeg, position)) is not None:
        if segment[1] == _JPEG_END:
            return segment.start(), is_sequential
        is_sequential |= segment[1] in _JPEG_SEQUENTIAL
        position = segment.end()
        if segment[1] not in {_JPEG_START, _JPEG_LONE}:
            position += int.from_bytes(jpeg[position : position + 2], "big")
    return None, is_sequential


def _ends_flat(image: ImageFile.ImageFile) -> bool:
    """Whether the last block of 8x8 has one colour, as one that was made up does; decoded smaller, so is the block."""
    right, bottom = image.size
    side = max(1, 8 // _scale_of(image))
    corner = image.crop((side * ((right - 1) // side), side * ((bottom - 1) // side), right, bottom))
    return all(low == high for low, high in map(Image.Image.getextrema, corner.split()))


def _depends_on_what_follows(image: ImageFile.ImageFile, jpeg: bytes) -> bool:
    """Whether a JPEG without its end marker shows something else with other bytes behind it: it has too few itself."""
    again = JpegImagePlugin.JpegImageFile(io.BytesIO(jpeg + _FILLER + b"\xff" + _JPEG_END))
    if (scale := _scale_of(image)) > 1:
        again.draft(image.mode, (max(1, again.width // scale), max(1, again.height // scale)))
    again.load()
    return ImageChops.difference(image, again).getbbox() is not None


def _scale_of(image: Image.Image) -> int:
    """What a JPEG was divided by while it was decoded: 1, 2, 4 or 8."""
    return int((getattr(image, "decoderconfig", ()) or (1,))[0])


def _require_8_bits(jpeg2000: IO[bytes]) -> None:
    """Pillow rounds more bits to 8 and lets white run over to black (but for grey alone: that stays wide)."""
    jpeg2000.seek(0)
    content = jpeg2000.read()
    depth = (content[content.find(b"\xff\x4f\xff\x51") + 42] & 0x7F) + 1  # Ssiz, ISO/IEC 15444-1 A.5.1
    if depth > 8:  # noqa: PLR2004
        raise RefusedError(f"JPEG 2000 colours of {depth} bits are not supported", "Save it anew as 16-bit PNG.")


def raw_mode(image: ImageFile.ImageFile) -> str:
    """How the file stores its pixels, in Pillow's words; known until the image is loaded."""
    return str(arguments(image.tile[0])[0]) if image.tile else ""


def arguments(tile: ImageFile._Tile) -> tuple[Any, ...]:
    """Arguments of the decoder, raw mode first."""
    return (tile.args or ("",)) if isinstance(tile.args, tuple) else (tile.args,)
