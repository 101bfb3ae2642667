"""The size of an image is known without its pixels, as it will be when it is read."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segdeploy import images
from segdeploy.data import sizes
from segdeploy.errors import SegdeployError

ENDINGS = [".png", ".jpg", ".gif", ".bmp", ".tif", ".webp", ".avif", ".jp2", ".ppm", ".tga", ".ico", ".qoi"]
WITH_EXIF = [".png", ".jpg", ".tif", ".webp", ".avif"]


def written(path: Path, **options: Any) -> Path:  # noqa: ANN401 - Pillow's own
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ENDINGS)
def test_the_size_is_that_of_the_image_when_it_is_read(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"a{suffix}")
    assert sizes.size(path)[:2] == images.read(path).shape[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", WITH_EXIF)
def test_the_size_is_that_of_the_upright_image(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = written(tmp_path / f"a{suffix}", exif=exif)
    found = sizes.size(path)
    assert found[:2] == images.read(path).shape[:2] == ((30, 20) if orientation > 4 else (20, 30))


def test_exif_behind_the_pixels_of_a_png_counts(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = written(tmp_path / "a.png", exif=exif).read_bytes()
    start = whole.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(whole[start : start + 4], "big")
    moved = tmp_path / "b.png"
    moved.write_bytes(whole[:start] + whole[end:-12] + whole[start:end] + whole[-12:])
    assert sizes.size(moved)[:2] == images.read(moved).shape[:2] == (30, 20)


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_what_is_no_image_is_refused_as_when_it_is_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(SegdeployError) as read:
        images.read(path)
    with pytest.raises(SegdeployError) as sized:
        sizes.size(path)
    assert str(sized.value) == str(read.value)


def both(path: Path) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """As it is read and as its head says; None where it cannot be read."""
    try:
        return images.read(path).shape[:2], sizes.size(path)[:2]
    except SegdeployError:
        return None


@pytest.mark.skipif("SEGDEPLOY_DATA" not in os.environ, reason="SEGDEPLOY_DATA does not name the folder of odd_images/")
def test_real_files_have_the_size_that_they_are_read_with(segdeploy_data: Path) -> None:
    files = [*(segdeploy_data / "odd_images").iterdir(), *(segdeploy_data / "photos").iterdir()]
    known = {file.name: found for file in files if (found := both(file)) is not None}
    assert len(known) > 40
    assert {name: found for name, found in known.items() if found[0] != found[1]} == {}
