"""Palette PNGs: every reader gets back the very indices, and their size is that of what changes downward."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segdeploy import images, png

COLOURS = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)


@given(height=st.integers(1, 40), width=st.integers(1, 300), classes=st.integers(1, 256), seed=st.integers(0, 99))
def test_the_indices_are_read_back(height: int, width: int, classes: int, seed: int) -> None:
    indices = np.random.default_rng(seed).integers(0, classes, (height, width), dtype=np.uint8)
    with Image.open(io.BytesIO(png.palette_png(indices, COLOURS, [("Software", "a mask")]))) as image:
        image.load()
        assert (image.mode, image.info["Software"]) == ("P", "a mask")
        np.testing.assert_array_equal(np.asarray(image), indices)
        np.testing.assert_array_equal(np.array(image.getpalette(), np.uint8).reshape(-1, 3), COLOURS)


def test_every_chunk_has_its_checksum() -> None:
    """Pillow passes over most of them; others do not."""
    data = png.palette_png(np.eye(7, 9, dtype=np.uint8), COLOURS, [("a", "b")])
    kinds, place = [], 8
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        content = data[place + 8 : place + 8 + length]
        assert data[place + 8 + length : place + 12 + length] == struct.pack(">I", zlib.crc32(kind + content))
        kinds.append(kind)
        place += 12 + length
    assert kinds == [b"IHDR", b"tEXt", b"PLTE", b"IDAT", b"IEND"]


def test_a_view_that_is_not_contiguous_is_written_as_it_looks() -> None:
    indices = np.arange(60, dtype=np.uint8).reshape(6, 10)[::-1, ::2].T
    with Image.open(io.BytesIO(png.palette_png(indices, COLOURS))) as image:
        np.testing.assert_array_equal(np.asarray(image), indices)


def test_what_repeats_downward_costs_next_to_nothing() -> None:
    rows = np.random.default_rng(0).integers(0, 9, (1, 4000), dtype=np.uint8)
    once, often = (len(images.mask_png(rows.repeat(count, axis=0), [(1, 2, 3)])) for count in (1, 1000))
    assert often < once + 8000


@pytest.mark.parametrize("height,width", [(1, 1), (2, 1), (1, 2)])
def test_the_smallest_masks_are_whole(height: int, width: int) -> None:
    data = images.mask_png(np.full((height, width), 3, np.uint8), [(0, 0, 0)] * 4)
    with Image.open(io.BytesIO(data)) as image:
        assert np.asarray(image).tolist() == [[3] * width] * height
