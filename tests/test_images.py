"""Images in, masks out: every rule of reading, both resizes, and both ways to draw a class map."""

import concurrent.futures
import contextlib
import io
import os
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from segdeploy import images, palettes
from segdeploy.errors import InvalidFileError, InvalidRequestError

EVERY_16_BITS = np.arange(65536, dtype=np.uint16).reshape(256, 256)
NEAREST = np.rint(EVERY_16_BITS / 257).astype(np.uint8)
CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by PNG colour type
WRITABLE = [".png", ".jpg", ".gif", ".bmp", ".tif", ".webp", ".avif", ".jp2", ".ppm", ".tga", ".ico", ".qoi"]
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def noise(height: int, width: int, channels: int = 3) -> images.UInt8:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(height: int, width: int) -> images.UInt8:
    """Ramps, which lossy formats keep nearly as they are."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], axis=-1).astype(np.uint8)


def saved(path: Path, image: Image.Image, **options: Any) -> Path:  # noqa: ANN401 - Pillow's own type
    image.save(path, **options)
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(pixels: np.ndarray[Any, Any], *, bits: int, colour_type: int, between: bytes = b"") -> bytes:
    """Encode (H, W * channels) samples; those of fewer than 8 bits are packed already."""
    height, width = pixels.shape[0], pixels.shape[1] // CHANNELS[colour_type] * 8 // min(bits, 8)
    rows = pixels.astype(">u2").view(np.uint8) if bits == 16 else pixels.astype(np.uint8)
    scanlines = np.hstack([np.zeros((height, 1), np.uint8), rows.reshape(height, -1)])
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    body = between + chunk(b"IDAT", zlib.compress(scanlines.tobytes()))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def tiff_in_planes(pixels: np.ndarray[Any, Any], order: str) -> bytes:
    height, width, channels = pixels.shape
    planes = [pixels[..., c].astype(f"{order}u2").tobytes() for c in range(channels)]
    start = 8 + 2 + 12 * 8 + 4
    triples = start + 6  # where the tags of three values lie, behind the bits per sample
    offsets = [triples + 12 + c * len(planes[0]) for c in range(channels)]
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 3, start),
        (262, 3, 1, 2),
        (273, 4, 3, triples),
        (277, 3, 1, 3),
        (278, 4, 1, height),
        (284, 3, 1, 2),
    ]
    entries = b"".join(
        struct.pack(order + "HHI", *tag[:3]) + struct.pack(order + ("HH" if tag[1:3] == (3, 1) else "I"), *value(tag))
        for tag in tags
    )
    mark = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(tags))
    samples = struct.pack(order + "HHH", 16, 16, 16) + struct.pack(order + "III", *offsets)
    return mark + entries + bytes(4) + samples + b"".join(planes)


def value(tag: tuple[int, int, int, int]) -> tuple[int, ...]:
    return (tag[3], 0) if tag[1:3] == (3, 1) else (tag[3],)


def assert_refused(path: Path, reason: str, *, by: Callable[[Path], images.UInt8] = images.read) -> None:
    with pytest.raises(InvalidFileError) as refused:
        by(path)
    assert str(path) in refused.value.what
    assert reason in refused.value.what
    assert "\n" not in refused.value.what
    assert refused.value.remedy


# --- modes


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm", ".tga", ".qoi"])
def test_colours_come_back_as_they_were_written(tmp_path: Path, suffix: str) -> None:
    photo = noise(70, 41)  # more rows than one band
    read = images.read(saved(tmp_path / f"a{suffix}", Image.fromarray(photo)))
    assert np.array_equal(read, photo)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".avif", ".jp2"])
def test_lossy_formats_come_back_nearly_as_they_were_written(tmp_path: Path, suffix: str) -> None:
    photo = smooth(96, 128)
    read = images.read(saved(tmp_path / f"a{suffix}", Image.fromarray(photo)))
    assert np.abs(read.astype(int) - photo).mean() < 3


def test_a_photo_can_be_written_to(tmp_path: Path) -> None:
    """`torch.from_numpy` warns of arrays that cannot, and warnings are errors here."""
    photo = images.read(saved(tmp_path / "a.png", Image.fromarray(noise(5, 6))))
    assert photo.flags.writeable
    assert photo.flags.c_contiguous


def test_grey_is_repeated(tmp_path: Path) -> None:
    grey = noise(9, 7, 1)
    assert np.array_equal(images.read(saved(tmp_path / "a.png", Image.fromarray(grey[..., 0]))), grey.repeat(3, axis=2))


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1", dither=Image.Dither.NONE)
    assert images.read(saved(tmp_path / "a.png", bits))[..., 0].tolist() == [[0, 255], [255, 0]]


@pytest.mark.parametrize("transparency", [None, 1, b"\x00\x80\xff"])
def test_a_palette_gives_its_colours_and_no_transparency(tmp_path: Path, transparency: int | bytes | None) -> None:
    """Pillow warns where a palette's alpha is dropped; a viewer's background must not come in."""
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([*RED, *GREEN, *BLUE])
    options = {} if transparency is None else {"transparency": transparency}
    assert images.read(saved(tmp_path / "a.png", image, **options)).tolist() == [[[*RED], [*GREEN], [*BLUE]]]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_alpha_is_dropped_not_blended(tmp_path: Path, suffix: str) -> None:
    """A cut-out's hidden colours are the photo's; blending would put black or white in."""
    pixels = noise(8, 8, 4)
    options = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    read = images.read(saved(tmp_path / f"a{suffix}", Image.fromarray(pixels), **options))
    assert np.array_equal(read, pixels[..., :3])


def test_grey_with_alpha_is_grey(tmp_path: Path) -> None:
    pixels = noise(8, 8, 2)
    read = images.read(saved(tmp_path / "a.png", Image.fromarray(pixels)))
    assert np.array_equal(read, pixels[..., :1].repeat(3, axis=2))


@pytest.mark.parametrize("mode, suffix", [("CMYK", ".tif"), ("CMYK", ".jpg"), ("YCbCr", ".jpg"), ("LAB", ".tif")])
def test_other_colour_spaces_take_pillows_conversion(tmp_path: Path, mode: str, suffix: str) -> None:
    image = Image.fromarray(smooth(100, 60))
    image = Image.merge("LAB", image.split()) if mode == "LAB" else image.convert(mode)
    path = saved(tmp_path / f"a{suffix}", image)
    with Image.open(path) as opened:
        assert np.array_equal(images.read(path), np.asarray(opened.convert("RGB")))


@pytest.mark.parametrize("mode", ["F", "I"])
def test_values_of_unknown_range_are_refused(tmp_path: Path, mode: str) -> None:
    assert_refused(saved(tmp_path / "a.tif", Image.new(mode, (4, 4), 1)), "whose range is unknown")


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_the_first_frame_of_many_is_read(tmp_path: Path, suffix: str) -> None:
    first, second = (Image.new("RGB", (6, 5), colour) for colour in (RED, BLUE))
    options = {"lossless": True} if suffix == ".webp" else {}
    path = saved(tmp_path / f"a{suffix}", first, save_all=True, append_images=[second], **options)
    assert np.unique(images.read(path).reshape(-1, 3), axis=0).tolist() == [[*RED]]


# --- 16 bits


@pytest.mark.parametrize("colour_type", CHANNELS)
def test_16_bits_are_divided_by_257_to_the_nearest(tmp_path: Path, colour_type: int) -> None:
    """Pillow takes the high byte of colours, up to one level off; all 65536 values in every channel."""
    channels = [EVERY_16_BITS, EVERY_16_BITS[::-1], EVERY_16_BITS.T, EVERY_16_BITS[:, ::-1]][: CHANNELS[colour_type]]
    samples = np.stack(channels, axis=-1).reshape(256, -1)
    expected = [NEAREST, NEAREST[::-1], NEAREST.T] if len(channels) > 2 else [NEAREST] * 3
    read = images.read(written(tmp_path / "a.png", png(samples, bits=16, colour_type=colour_type)))
    assert np.array_equal(read, np.stack(expected, axis=-1))


@pytest.mark.parametrize("compression", [1, 5, 8])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_of_a_tiff_are_divided_by_257(tmp_path: Path, compression: int, channels: int) -> None:
    samples = np.stack([EVERY_16_BITS, EVERY_16_BITS[::-1], EVERY_16_BITS.T, EVERY_16_BITS][:channels], axis=-1)
    cv2.imwrite(str(tmp_path / "a.tif"), samples, [cv2.IMWRITE_TIFF_COMPRESSION, compression])
    blue, green, red = (samples[..., c] for c in ((0, 1, 2) if channels > 1 else (0, 0, 0)))
    expected = np.rint(np.stack([red, green, blue], axis=-1) / 257)
    assert np.array_equal(images.read(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bits_in_planes_are_divided_by_257(tmp_path: Path, order: str) -> None:
    """Pillow reads the planes as if they had 8 bits, and says nothing."""
    samples = np.stack([EVERY_16_BITS, EVERY_16_BITS[::-1], EVERY_16_BITS.T], axis=-1)
    path = written(tmp_path / "a.tif", tiff_in_planes(samples, order))
    assert np.array_equal(images.read(path), np.rint(samples / 257))


def test_a_pgm_of_any_maximum_fills_the_range(tmp_path: Path) -> None:
    path = written(tmp_path / "a.pgm", b"P5 3 1 1000\n" + struct.pack(">3H", 0, 500, 1000))
    assert images.read(path)[0, :, 0].tolist() == [0, 128, 255]


def test_deep_colours_of_jpeg_2000_are_refused(tmp_path: Path) -> None:
    """Pillow gives 0 for 65535: white would be black."""
    cv2.imwrite(str(tmp_path / "a.jp2"), np.full((64, 64, 3), 65535, np.uint16))
    assert_refused(tmp_path / "a.jp2", "16 bits")


# --- EXIF


def as_stored(upright: images.UInt8, orientation: int) -> images.UInt8:
    """Row 0 and column 0 lie at these sides of the upright image (EXIF 2.32, tag 0x0112)."""
    row_side, column_side = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation]
    stored = upright.swapaxes(0, 1) if row_side in {"left", "right"} else upright
    stored = stored[::-1] if row_side in {"right", "bottom"} else stored
    return stored[:, ::-1] if column_side in {"right", "bottom"} else stored


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_exif_turns_the_photo_upright_once(tmp_path: Path, suffix: str, orientation: int) -> None:
    """Pillow turns a TIFF by itself, and no other format."""
    upright = noise(2, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == ".webp" else {}
    image = Image.fromarray(np.ascontiguousarray(as_stored(upright, orientation)))
    read = images.read(saved(tmp_path / f"a{suffix}", image, exif=exif, **options))
    assert np.array_equal(read, upright)


@pytest.mark.parametrize("exif", [b"garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"])
def test_broken_exif_leaves_the_photo_as_it_is(tmp_path: Path, exif: bytes) -> None:
    path = saved(tmp_path / "a.jpg", Image.new("RGB", (6, 4)), exif=exif)
    assert images.read(path).shape == (4, 6, 3)


# --- what is refused


@pytest.mark.parametrize("suffix", WRITABLE)
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    """Half a photo gives half a mask, and nobody notices in a folder of thousands."""
    path = saved(tmp_path / f"a{suffix}", Image.fromarray(smooth(200, 200)))
    content = path.read_bytes()
    for share in (0.1, 0.5, 0.9):
        assert_refused(written(path, content[: int(share * len(content))]), "")


def test_a_flipped_bit_in_a_png_is_refused(tmp_path: Path) -> None:
    """Pillow checks no sum over the pixels: without ours, 4 of 40 such files gave a wrong image."""
    photo = np.cumsum(noise(500, 600) % 3, axis=1).astype(np.uint8)
    path = saved(tmp_path / "a.png", Image.fromarray(photo))
    content = path.read_bytes()
    for place in np.random.default_rng(1).integers(content.index(b"IDAT") + 4, len(content) - 16, 40):
        damaged = bytearray(content)
        damaged[place] ^= 4
        assert_refused(written(path, bytes(damaged)), "")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tga", "a"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    assert_refused(written(tmp_path / name, b""), "the file is empty")


@pytest.mark.parametrize("name", ["notes.png", "notes.jpg", "notes.tga"])
def test_text_is_refused(tmp_path: Path, name: str) -> None:
    assert_refused(written(tmp_path / name, b"no image at all, but a text of some length" * 9), "")


def test_an_image_is_known_by_its_content_not_by_its_name(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.gif", Image.fromarray(noise(3, 3)))
    saved(path, Image.fromarray(noise(3, 3)), format="PNG")
    assert np.array_equal(images.read(path), noise(3, 3))


def test_postscript_is_refused_unread(tmp_path: Path) -> None:
    """Pillow would start Ghostscript on it."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    assert_refused(written(tmp_path / "a.png", eps), "no image of a known format")


def test_an_image_without_pixels_is_refused(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 0, 5, 8, 2, 0, 0, 0)
    assert_refused(written(tmp_path / "a.png", b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)), "")
    assert_refused(written(tmp_path / "a.ppm", b"P6 0 5 255\n"), "")


def test_a_missing_path_and_a_folder_are_wrong_requests(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="does not exist"):
        images.read(tmp_path / "missing.png")
    with pytest.raises(InvalidRequestError, match="does not exist"):
        images.read(tmp_path / "zero\0byte.png")
    with pytest.raises(InvalidRequestError, match="is a folder"):
        images.read(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_a_wrong_request(tmp_path: Path) -> None:
    """Opening it would wait for ever."""
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InvalidRequestError, match="is no file"):
        images.read(tmp_path / "pipe.png")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="needs a user who is not root")
def test_no_permission_is_said(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", (2, 2)))
    path.chmod(0)
    assert_refused(path, "no permission")


def test_a_denied_open_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule above where the tests run as root."""

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = saved(tmp_path / "a.png", Image.new("RGB", (2, 2)))
    monkeypatch.setattr(Path, "open", denied)
    assert_refused(path, "no permission")


def test_a_name_with_a_line_break_stays_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidFileError) as refused:
        images.read(written(tmp_path / "two\nlines\udcff.png", b"nothing"))
    assert refused.value.what.isprintable()
    assert r"two\nlines\udcff.png" in refused.value.what


# --- declared sizes


def bomb_png() -> bytes:
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def bomb_bmp() -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, 100_000, 100_000, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 2000, 0, 0, 54) + header + bytes(1000)


def bomb_webp() -> bytes:
    header = b"VP8X" + struct.pack("<II", 10, 0) + b"\xff\x3f\x00" + b"\xff\x3f\x00"  # 16384 x 16384
    body = b"VP8L" + struct.pack("<I", 5) + b"\x2f\xff\xff\xff\x0f\0"
    return b"RIFF" + struct.pack("<I", 4 + len(header) + len(body)) + b"WEBP" + header + body


def bomb_pgm() -> bytes:
    return b"P5 20000 20000 255\n" + bytes(100)


def bomb_just_over() -> bytes:
    return b"P5 15000 10001 255\n" + bytes(100)


@pytest.mark.parametrize("bomb", [bomb_png, bomb_bmp, bomb_webp, bomb_pgm, bomb_just_over])
def test_a_huge_declared_size_is_refused_before_decoding(tmp_path: Path, bomb: Callable[[], bytes]) -> None:
    resource = pytest.importorskip("resource", reason="needs the peak memory of a Unix process")
    path = written(tmp_path / "bomb.png", bomb())
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    assert_refused(path, "")
    assert time.monotonic() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_the_refusal_of_a_bomb_names_both_sizes(tmp_path: Path) -> None:
    assert_refused(written(tmp_path / "a.png", bomb_bmp()), "100000x100000 pixels, more than 150,000,000")


def test_pillows_own_limits_do_not_speak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns from 89 megapixels on and fails from 179, here made small: only our limit counts."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    path = saved(tmp_path / "a.png", Image.new("RGB", (200, 300)))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert images.read(path).shape == (300, 200, 3)
    assert not said


# --- warnings and threads


def with_a_warning() -> bytes:
    """Pillow warns: the animation has no frames."""
    nothing = chunk(b"acTL", struct.pack(">II", 0, 0))
    return png(noise(4, 4).reshape(4, 12), bits=8, colour_type=2, between=nothing)


def test_a_warning_of_pillow_refuses_nothing(tmp_path: Path) -> None:
    """Warnings are errors in these tests; the pixels are whole."""
    assert np.array_equal(images.read(written(tmp_path / "a.png", with_a_warning())), noise(4, 4))


def test_threads_read_at_once(tmp_path: Path) -> None:
    filters = list(warnings.filters)
    photo = noise(64, 64)
    paths = [saved(tmp_path / f"{k}.png", Image.fromarray(photo)) for k in range(16)]
    paths += [written(tmp_path / f"warning{k}.png", with_a_warning()) for k in range(4)]
    gate = threading.Barrier(4)

    def read(path: Path) -> bool:
        gate.wait()
        return np.array_equal(images.read(path), photo if path.name[0] != "w" else noise(4, 4))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, paths))
    assert warnings.filters == filters


# --- masks


def indexed(class_map: images.UInt8) -> Image.Image:
    image = Image.fromarray(class_map)
    image.putpalette([*RED] * 256)
    return image


def test_a_palette_mask_gives_indices_not_colours(tmp_path: Path) -> None:
    class_map = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(images.read_mask(saved(tmp_path / "a.png", indexed(class_map))), class_map)


@pytest.mark.parametrize("bits, packed, stored", [(1, 0b10110000, [1, 0, 1, 1]), (2, 0b11100100, [3, 2, 1, 0])])
def test_a_mask_of_few_bits_gives_what_is_stored(tmp_path: Path, bits: int, packed: int, stored: list[int]) -> None:
    """Pillow stretches grey of 2 and 4 bits to 0..255: class 3 would be class 255."""
    path = written(tmp_path / "a.png", png(np.array([[packed]]), bits=bits, colour_type=0))
    assert images.read_mask(path)[0, :4].tolist() == stored


def test_a_mask_of_4_bits_gives_what_is_stored(tmp_path: Path) -> None:
    path = written(tmp_path / "a.png", png(np.arange(16).reshape(1, 16) * 17, bits=4, colour_type=0))
    assert images.read_mask(path)[0, ::2].tolist() == list(range(16))


@pytest.mark.parametrize("maximum", [1, 11, 200, 255, 1000, 65535])
def test_a_pgm_mask_gives_what_is_stored(tmp_path: Path, maximum: int) -> None:
    """Pillow stretches every PGM from its own maximum."""
    stored = np.arange(min(maximum, 255) + 1)
    samples = stored.astype(">u2" if maximum > 255 else np.uint8).tobytes()
    path = written(tmp_path / "a.pgm", b"P5 %d 1 %d\n" % (len(stored), maximum) + samples)
    assert np.array_equal(images.read_mask(path)[0], stored)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_mask_of_16_bits_is_read_where_its_values_fit(tmp_path: Path, suffix: str) -> None:
    fitting = np.arange(256, dtype=np.uint16).reshape(16, 16)
    assert np.array_equal(images.read_mask(saved(tmp_path / f"a{suffix}", Image.fromarray(fitting))), fitting)
    path = saved(tmp_path / f"b{suffix}", Image.fromarray(fitting + 1))
    assert_refused(path, "values from 1 to 256", by=images.read_mask)


def test_a_negative_class_is_refused(tmp_path: Path) -> None:
    assert_refused(saved(tmp_path / "a.tif", Image.new("I", (3, 3), -1)), "from -1 to -1", by=images.read_mask)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "CMYK", "F"])
def test_a_mask_of_colours_is_refused(tmp_path: Path, mode: str) -> None:
    """Colours are no class numbers, and a palette for them is not asked for."""
    path = saved(tmp_path / "a.tif", Image.new(mode, (3, 3)))
    assert_refused(path, f"mode {mode}", by=images.read_mask)
    with pytest.raises(InvalidFileError, match="index masks"):
        images.read_mask(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_is_turned_as_its_photo(tmp_path: Path, orientation: int) -> None:
    """EXIF that a tool copied from the photo turns both, or neither."""
    class_map = noise(2, 3, 1)[..., 0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.png", Image.fromarray(class_map), exif=exif)
    assert np.array_equal(images.read_mask(path), images.read(path)[..., 0])


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.jpg", {}),
        ("a.png", {"format": "JPEG"}),
        ("a.mpo", {"format": "MPO", "save_all": True}),
        ("a.jp2", {}),
        ("a.tif", {"compression": "jpeg"}),
    ],
)
def test_a_mask_that_is_stored_lossy_is_refused(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    """Between class 0 and class 9 it makes classes that nobody drew."""
    path = saved(tmp_path / name, Image.fromarray(9 * (noise(20, 30, 1)[..., 0] > 127).astype(np.uint8)), **options)
    assert images.read(path).shape == (20, 30, 3)
    assert_refused(path, "a mask holds class numbers, and JPEG changes them", by=images.read_mask)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "packbits"])
def test_a_mask_that_is_stored_without_loss_is_read(tmp_path: Path, compression: str | None) -> None:
    class_map = noise(20, 30, 1)[..., 0]
    path = saved(tmp_path / "a.tif", Image.fromarray(class_map), compression=compression)
    assert np.array_equal(images.read_mask(path), class_map)


def test_a_truncated_mask_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", indexed(noise(60, 60, 1)[..., 0]))
    assert_refused(written(path, path.read_bytes()[:-900]), "", by=images.read_mask)


# --- resizing


def test_an_equal_size_is_the_same_array() -> None:
    photo, class_map = noise(6, 8), noise(6, 8, 1)[..., 0]
    assert images.to_network_size(photo, height=6, width=8) is photo
    assert images.to_photo_size(class_map, height=6, width=8) is class_map


def test_the_network_size_is_stretched_and_antialiased() -> None:
    """Without the filter, every second column of stripes would be all black or all white."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = images.to_network_size(stripes, height=8, width=16)
    assert small.shape == (8, 16, 3)
    assert small.flags.writeable
    assert set(small[:, 1:-1].ravel().tolist()) <= {127, 128}


def test_the_network_size_is_pillows_bilinear() -> None:
    photo = noise(31, 57)
    expected = Image.fromarray(photo).resize((40, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(images.to_network_size(photo, height=64, width=40), np.asarray(expected))


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)), st.integers(1, 5), st.integers(1, 5)
)
def test_a_class_map_survives_a_whole_factor(class_map: images.UInt8, down: int, across: int) -> None:
    height, width = class_map.shape
    large = images.to_photo_size(class_map, height=height * down, width=width * across)
    assert np.array_equal(large, class_map.repeat(down, axis=0).repeat(across, axis=1))
    assert np.array_equal(images.to_photo_size(large, height=height, width=width), class_map)


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)), st.integers(1, 40), st.integers(1, 40)
)
def test_no_size_invents_a_class(class_map: images.UInt8, height: int, width: int) -> None:
    resized = images.to_photo_size(class_map, height=height, width=width)
    assert resized.shape == (height, width)
    assert set(resized.ravel()) <= set(class_map.ravel())


# --- masks and overlays, written


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_any_class_map_survives_the_mask_file(
    tmp_path_factory: pytest.TempPathFactory, class_map: images.UInt8
) -> None:
    path = written(
        tmp_path_factory.getbasetemp() / "mask.png", images.mask_png(class_map, palettes.default_colours(21))
    )
    assert np.array_equal(images.read_mask(path), class_map)


@pytest.mark.parametrize("count", [1, 2, 11, 16, 17, 256])
def test_a_mask_file_has_8_bits_and_its_colours(count: int) -> None:
    """Pillow packs few colours into 1, 2 or 4 bits, which other readers stretch."""
    colours = palettes.default_colours(count)
    content = images.mask_png(np.array([[0, 255, count - 1]], np.uint8), colours)
    assert content[24:26] == b"\x08\x03"  # bit depth and colour type of the header
    palette = Image.open(io.BytesIO(content)).getpalette()
    assert palette is not None
    assert palette[: 3 * count] == [v for colour in colours for v in colour]
    assert palette[3 * count :] == [0] * (768 - 3 * count)


def test_a_mask_of_a_view_is_the_view() -> None:
    class_map = noise(8, 9, 1)[..., 0]
    content = images.mask_png(class_map[::-1, ::2], [RED])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), class_map[::-1, ::2])


@given(st.floats(0, 1))
def test_an_overlay_is_the_mean_of_photo_and_colour(opacity: float) -> None:
    """Opacity is rounded to a 256th, half of that of 255 levels; then comes the rounding to a level."""
    photo, class_map = noise(35, 20), np.maximum(noise(35, 20, 1)[..., 0], 1)
    colours = palettes.default_colours(256)
    exact = photo * (1 - opacity) + np.array(colours)[class_map] * opacity
    tinted = images.overlay(photo, class_map, colours, opacity=opacity)
    assert tinted.dtype == np.uint8
    assert np.abs(tinted - exact).max() <= 1.0


def test_a_black_class_leaves_the_photograph_as_it_is() -> None:
    """Backgrounds are black in most palettes; a darkened photograph hides what the mask missed."""
    photo = noise(6, 6)
    assert np.array_equal(images.overlay(photo, np.zeros((6, 6), np.uint8), [(0, 0, 0), RED]), photo)


def test_the_ends_of_opacity_are_exact() -> None:
    photo, class_map = noise(5, 7), np.maximum(noise(5, 7, 1)[..., 0], 1)
    colours = palettes.default_colours(256)
    assert np.array_equal(images.overlay(photo, class_map, colours, opacity=0), photo)
    assert np.array_equal(images.overlay(photo, class_map, colours, opacity=1), np.array(colours)[class_map])


def test_an_overlay_file_shows_the_overlay() -> None:
    photo = smooth(64, 96)
    class_map = np.zeros((64, 96), np.uint8)
    class_map[:, 48:] = 1
    shown = np.asarray(Image.open(io.BytesIO(images.overlay_jpeg(photo, class_map, [GREEN, RED]))))
    assert np.abs(shown - images.overlay(photo, class_map, [GREEN, RED]).astype(int)).mean() < 3


def test_an_overlay_longer_than_jpeg_allows_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="70000x1"):
        images.overlay_jpeg(np.zeros((1, 70_000, 3), np.uint8), np.zeros((1, 70_000), np.uint8), [RED])


# --- names


def test_every_extension_belongs_to_a_format_that_is_read() -> None:
    """But for those of packages that need not be installed."""
    known = Image.registered_extensions()
    others = {".heic", ".heics", ".heif", ".heifs", ".hif", ".jxl"}
    assert others < images.EXTENSIONS
    for suffix in images.EXTENSIONS - others:
        assert known[suffix] in {*Image.OPEN, "MPO"}
        assert known[suffix] not in {"EPS", "WMF"}
    assert {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".mpo", ".avif", ".ppm"} <= images.EXTENSIONS


# --- whatever the bytes are

STARTS = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"RIFF\0\0\0\0WEBP"]
STARTS += [b"8BPS", b"P6 3 2 255\n", b"P2 2 2 9\n", b"qoif", b"\0\0\1\0", b"\0\0\0\x20ftypavif", b"\xff\x4f\xff\x51"]


def gives_an_image_or_an_error_of_ours(path: Path) -> None:
    for reader, dimensions in ((images.read, 3), (images.read_mask, 2)):
        with contextlib.suppress(InvalidFileError):
            assert reader(path).ndim == dimensions


@settings(max_examples=200)
@given(st.sampled_from(STARTS), st.binary(max_size=200), st.sampled_from([".png", ".tga"]))
def test_random_bytes_raise_only_our_errors(
    tmp_path_factory: pytest.TempPathFactory, start: bytes, rest: bytes, suffix: str
) -> None:
    gives_an_image_or_an_error_of_ours(written(tmp_path_factory.getbasetemp() / f"random{suffix}", start + rest))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("samples")
    image = Image.fromarray(smooth(24, 32))
    return {suffix: saved(folder / f"a{suffix}", image).read_bytes() for suffix in WRITABLE}


@settings(max_examples=200)
@given(st.data())
def test_damaged_images_raise_only_our_errors(
    tmp_path_factory: pytest.TempPathFactory, samples: dict[str, bytes], data: st.DataObject
) -> None:
    suffix = data.draw(st.sampled_from(sorted(samples)))
    content = bytearray(samples[suffix])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    gives_an_image_or_an_error_of_ours(written(tmp_path_factory.getbasetemp() / f"damaged{suffix}", bytes(content)))


# --- palettes


def test_default_colours_are_vocs_and_distinct() -> None:
    colours = palettes.default_colours(256)
    assert colours[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert colours[20] == (0, 64, 128)
    assert colours[255] == (224, 224, 192)
    assert len(set(colours)) == 256


@pytest.mark.parametrize("name, count", [("camvid", 11), ("cityscapes", 19), ("voc", 21)])
def test_a_named_palette_has_one_distinct_colour_a_class(name: str, count: int) -> None:
    palette = getattr(palettes, name.upper())
    assert len(set(palette.classes)) == len(palette.classes) == count
    assert len(set(palette.colours)) == len(palette.colours) == count


def test_named_palettes_hold_the_published_colours() -> None:
    def colour(palette: str, name: str) -> tuple[int, int, int]:
        known: palettes.Palette = getattr(palettes, palette.upper())
        return dict(zip(known.classes, known.colours, strict=True))[name]

    assert colour("camvid", "Pavement") == (60, 40, 222)
    assert colour("cityscapes", "bicycle") == (119, 11, 32)
    assert colour("voc", "person") == (192, 128, 128)
