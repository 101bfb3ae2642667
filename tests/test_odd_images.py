"""Real files from the test suites of image libraries: each gives its image or the true reason why not."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from segdeploy import images
from segdeploy.errors import InvalidFileError

DATA = os.environ.get("SEGDEPLOY_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="SEGDEPLOY_DATA does not name the folder that holds odd_images/")
FOLDER = Path(DATA or ".") / "odd_images"

SHAPES = {
    "apng__0__ball.png": (100, 100),
    "apng__1__rgba16.png": (20, 20),
    "avif_anim__0__star.avifs": (159, 159),
    "gif__0__interlaced.gif": (32, 32),
    "ico__0__Bad_smile-incorrect-image-length.ico": (32, 32),
    "jpeg_cmyk__0__jpg-cmyk-1.jpg": (32, 32),
    "jpeg_exif_o3__0__Landscape_3.jpg": (1200, 1800),
    "jpeg_exif_o5__0__Landscape_5.jpg": (1200, 1800),
    "jpeg_exif_o8__0__Landscape_8.jpg": (1200, 1800),
    "jpeg_gray__1__grayscale_large.jpg": (1, 1000),
    "jpeg_icc__0__Canon_40D.jpg": (68, 100),
    "jpeg_progressive__1__3.jpg": (470, 650),
    "jpeg_progressive__2__cat.jpg": (240, 320),
    "mpo__1__frozenpond.mpo": (480, 640),
    "png16_ctype0__1__grayscale_16x24_sampling2x2.png": (24, 16),
    "png16_ctype0__2__grayscale_24x16_sampling2x2.png": (16, 24),
    "png16_ctype2__2__basn2c16.png": (32, 32),
    "png16_ctype4__0__basn4a16.png": (32, 32),
    "png16_ctype4__2__gray-alpha-16-1.8.png": (256, 256),
    "png16_ctype6__0__basn6a16.png": (32, 32),
    "png16_ctype6__1__rgba16.png": (20, 20),
    "png16_ctype6__2__basn6a16.png": (32, 32),
    "png_1bit__0__blank_800x280.png": (280, 800),
    "png_1bit__1__jpg-srgb-icc.png": (1, 1),
    "png_LA__1__ibasn4a08.png": (32, 32),
    "png_L_trns__0__tbbn0g04.png": (32, 32),
    "png_interlaced__0__basi2c08.png": (32, 32),
    "png_pal_trns__0__tbbn3p08.png": (32, 32),
    "png_pal_trns__1__tbgn3p08.png": (32, 32),
    "png_pal_trns__2__tbwn3p08.png": (32, 32),
    "ppm__0__issue-794.pbm": (10, 10),
    "psd__0__five_channels.psd": (1, 1),
    "tga__0__black_white.tga": (720, 1280),
    "tiff_1__0__fax4.tiff": (307, 460),
    "tiff_CMYK__0__cmyk_u8_edge_case.tif": (1, 1),
    "tiff_I16__0__12bit.cropped.tif": (100, 100),
    "webp__0__lossy_alpha.webp": (100, 100),
}

REASONS = {
    # 48 megapixels declared, 253 bytes of run lengths that end long before
    "bomb_huge_header__2__Bad_unusual_extend_buffer_usage.bmp": "not enough image data",
    # 30000 bits a pixel
    "does_not_open__0__Bad_badbitcount.bmp": "Unsupported BMP pixel depth (30000)",
    # sound, but of 4 bits a channel, which neither Pillow nor OpenCV knows
    "does_not_open__3__V3_A4_R4_G4_B4_Top_Down.bmp": "Unsupported BMP bitfields layout",
    # a fuzzer's work: its Huffman tables break off
    "jpeg_load_fails__0__oss-fuzz-36829.jpeg": "broken data stream",
    # no end marker; OpenCV gives half of it and a warning
    "jpeg_load_fails__2__truncated_jpeg.jpg": "truncated",
    # its own index says 512,743 bytes, 48,197 are here: it ends where the pixels would begin; OpenCV gives grey
    "jpeg_load_fails__3__ultrahdr.jpg": "truncated",
    # cut at 10,000 bytes
    "png_load_fails__1__truncated.png": "truncated",
    # no pixel data at all
    "png_load_fails__2__syntax_num_frames_zero.png": "cannot load this image",
    # float: no range is known
    "tiff_F__0__10ct_32bit_128.tiff": "pixels are floats",
}

# OpenCV has no reader for these. Read by eye and by value: a yellow smile, one red pixel, white above black.
ONLY_PILLOW = {
    "ico__0__Bad_smile-incorrect-image-length.ico": {(0, 0, 0): 383, (255, 255, 0): 641},
    "psd__0__five_channels.psd": {(255, 0, 0): 1},
    "tga__0__black_white.tga": {(0, 0, 0): 487_680, (255, 255, 255): 433_920},
}

# Levels, measured between Pillow 13.0 and OpenCV 5.0: 2 in CMYK, where each rounds its own product of ink and black,
# and 0 in everything else. JPEG decoders may differ by a level or two, though these two share one.
TOLERANCES = dict.fromkeys([name for name in SHAPES if name.startswith(("jpeg_", "mpo_"))], 2)


def from_opencv(path: Path) -> images.UInt8 | None:
    """(H, W, 3) RGB by the same rules: COLOR turns by EXIF, but takes the high byte of 16 bits, where we divide."""
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if stored is None:
        return None
    if stored.dtype == np.uint16:
        levels = np.rint(stored / 257).astype(np.uint8)
        return levels[..., None].repeat(3, axis=2) if levels.ndim == 2 else levels[..., 2::-1]
    colours = cv2.imread(str(path), cv2.IMREAD_COLOR)
    return None if colours is None else colours[..., ::-1].astype(np.uint8)


def test_the_tables_are_complete() -> None:
    assert sorted(SHAPES.keys() | REASONS.keys()) == sorted(path.name for path in FOLDER.iterdir())
    assert len(SHAPES) + len(REASONS) == 46


@pytest.mark.parametrize("name", SHAPES)
def test_an_odd_image_is_read(name: str) -> None:
    assert images.read(FOLDER / name).shape == (*SHAPES[name], 3)


@pytest.mark.parametrize("name", REASONS)
def test_a_broken_image_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(InvalidFileError) as refused:
        images.read(FOLDER / name)
    assert name in refused.value.what
    assert REASONS[name] in refused.value.what


@pytest.mark.parametrize("name", [name for name in SHAPES if name not in ONLY_PILLOW])
def test_an_independent_decoder_gives_the_same_pixels(name: str) -> None:
    expected = from_opencv(FOLDER / name)
    assert expected is not None
    read = images.read(FOLDER / name)
    assert read.shape == expected.shape
    assert np.abs(read.astype(int) - expected).max() <= TOLERANCES.get(name, 0)


@pytest.mark.parametrize("name", ONLY_PILLOW)
def test_what_opencv_cannot_read_has_its_known_colours(name: str) -> None:
    assert from_opencv(FOLDER / name) is None
    colours, counts = np.unique(images.read(FOLDER / name).reshape(-1, 3), axis=0, return_counts=True)
    assert dict(zip(map(tuple, colours.tolist()), counts.tolist(), strict=True)) == ONLY_PILLOW[name]
