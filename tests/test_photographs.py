"""A photograph that is resized where it was decoded gives the pixels that reading it whole gives."""

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import SPEC, photograph
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from segdeploy import fitting, images
from segdeploy.errors import InvalidFileError

MODES = ["RGB", "L", "P", "RGBA", "CMYK", "I;16", "1", "LA"]
SIDE = st.integers(1, 90)


def saved(path: Path, image: Image.Image, *, orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(path, exif=exif)
    return path


def natural(height: int, width: int) -> Image.Image:
    """Smooth, as photographs are: where every pixel is noise, each scale of a JPEG shows another picture."""
    return Image.fromarray(photograph(height // 8, width // 8)).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_resizing_before_the_copy_changes_no_pixel(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = saved(tmp_path / f"a{suffix}", Image.fromarray(photograph(90, 130)), orientation=orientation)
    whole = images.read(path)
    opened = images.opened_photograph(path)
    assert (opened.height, opened.width) == whole.shape[:2]
    np.testing.assert_array_equal(opened.pixels, whole)
    np.testing.assert_array_equal(fitting.prepared(opened, SPEC), fitting.prepared(whole, SPEC))


@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_pixels_is_resized_as_it_is_read(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(photograph(40, 70)).convert(mode if mode != "I;16" else "L").convert(mode).save(path)
    np.testing.assert_array_equal(
        fitting.prepared(images.opened_photograph(path), SPEC), fitting.prepared(images.read(path), SPEC)
    )


@given(height=SIDE, width=SIDE, to=st.tuples(st.integers(1, 400), st.integers(1, 400)), seed=st.integers(0, 9))
def test_a_class_map_is_enlarged_as_pillow_does(height: int, width: int, to: tuple[int, int], seed: int) -> None:
    class_map = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(class_map).resize(to[::-1], Image.Resampling.NEAREST))
    np.testing.assert_array_equal(images.to_photo_size(class_map, height=to[0], width=to[1]), expected)


# At a smaller scale


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("least,scale", [((64, 64), 8), ((100, 140), 4), ((250, 300), 2), ((400, 600), 1)])
def test_a_jpeg_is_decoded_no_smaller_than_was_allowed(
    tmp_path: Path, orientation: int, least: tuple[int, int], scale: int
) -> None:
    path = saved(tmp_path / "a.jpg", natural(520, 640), orientation=orientation)
    height, width = (640, 520) if orientation == 6 else (520, 640)
    opened = images.opened_photograph(path, least=least[::-1] if orientation == 6 else least)
    assert isinstance(opened.decoded, Image.Image)
    assert opened.decoded.size == (-(-width // scale), -(-height // scale))
    assert (opened.height, opened.width) == (height, width)
    np.testing.assert_array_equal(opened.pixels, images.read(path))
    apart = fitting.prepared(opened, SPEC).astype(int) - fitting.prepared(images.read(path), SPEC)
    assert np.abs(apart).mean() < 1.5


@pytest.mark.parametrize("name", ["a.png", "grey.jpg"])
def test_what_has_no_smaller_scale_is_decoded_whole(tmp_path: Path, name: str) -> None:
    natural(520, 640).convert("L" if name == "grey.jpg" else "RGB").save(tmp_path / name)
    opened = images.opened_photograph(tmp_path / name, least=(10, 10))
    np.testing.assert_array_equal(fitting.prepared(opened, SPEC), fitting.prepared(images.read(tmp_path / name), SPEC))


@pytest.mark.parametrize("least", [(1, 1), (100, 100), (300, 300)])
@pytest.mark.parametrize("share", [0.3, 0.8, 0.97])
def test_a_jpeg_that_ends_too_early_is_refused_at_every_scale(
    tmp_path: Path, share: float, least: tuple[int, int]
) -> None:
    buffer = io.BytesIO()
    natural(520, 640).save(buffer, "JPEG")
    cut = buffer.getvalue()[: int(share * len(buffer.getvalue()))]
    for end in (b"", b"\xff\xd9"):
        (tmp_path / "a.jpg").write_bytes(cut + end)
        with pytest.raises(InvalidFileError):
            images.opened_photograph(tmp_path / "a.jpg", least=least)


def test_a_whole_jpeg_with_a_flat_corner_is_no_damaged_one(tmp_path: Path) -> None:
    picture = np.asarray(natural(520, 640)).copy()
    picture[-100:] = 0
    Image.fromarray(picture).save(tmp_path / "a.jpg")
    for least in ((1, 1), (100, 100), (300, 300), None):
        assert images.opened_photograph(tmp_path / "a.jpg", least=least).height == 520
