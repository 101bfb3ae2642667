"""Images that are read from the top down hold the pixels that `images.read` gives, whatever their format."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import photograph
from PIL import Image

from segdeploy import huge_images, images
from segdeploy.errors import InvalidFileError, MissingRuntimeError
from segdeploy.huge_images import HugeImage

pytest.importorskip("pyvips")

HEIGHT, WIDTH = 301, 203


def saved(path: Path, photo: Image.Image, **how: Any) -> Path:  # noqa: ANN401 - of Pillow
    photo.save(path, **how)
    return path


def whole(path: Path) -> np.ndarray:
    with HugeImage(path) as image:
        return np.concatenate(list(image.bands()))


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few rows are decoded at once as of an image of 100,000 columns."""
    monkeypatch.setattr(huge_images, "_BYTES_AT_ONCE", 7 * WIDTH * 3)


@pytest.mark.parametrize(
    "name,how",
    [
        ("a.png", {}),
        ("a.jpg", {"quality": 90}),
        ("progressive.jpg", {"quality": 90, "progressive": True}),
        ("strips.tif", {}),
        ("lzw.tif", {"compression": "tiff_lzw"}),
        ("deflate.tif", {"compression": "tiff_adobe_deflate"}),
        ("name [page=1].png", {}),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_every_pixel_is_that_of_the_usual_reader(tmp_path: Path, name: str, how: dict[str, Any], mode: str) -> None:
    if name.endswith("jpg") and mode in {"RGBA", "P"}:
        mode = "L"
    path = saved(tmp_path / name, Image.fromarray(photograph(HEIGHT, WIDTH)).convert(mode), **how)
    np.testing.assert_array_equal(whole(path), images.read(path))


def test_sixteen_bits_are_divided_by_257(tmp_path: Path) -> None:
    wide = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH), np.uint16)
    for name in ("a.png", "a.tif"):
        path = saved(tmp_path / name, Image.fromarray(wide))
        np.testing.assert_array_equal(whole(path), images.read(path))


def test_a_name_of_any_bytes_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(photograph(HEIGHT, WIDTH)))
    other = path.rename(tmp_path / "\udcff.png")
    assert whole(other).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("height,width", [(64, 64), (480, 360), (301, 203), (1, 1)])
def test_resized_from_the_top_down_it_is_the_same_picture(tmp_path: Path, height: int, width: int) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(photograph(HEIGHT, WIDTH)))
    with HugeImage(path) as image:
        found = huge_images.resized(image, height=height, width=width)
    np.testing.assert_array_equal(found, images.to_network_size(images.read(path), height=height, width=width))


def test_where_pillow_begins_with_the_columns_values_are_one_apart(tmp_path: Path) -> None:
    path = saved(tmp_path / "tall.png", Image.fromarray(photograph(4000, 50)))
    with HugeImage(path) as image:
        found = huge_images.resized(image, height=64, width=64)
    expected = images.to_network_size(images.read(path), height=64, width=64)
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_rows_may_be_asked_for_again_but_not_from_above(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(photograph(HEIGHT, WIDTH)))
    expected = images.read(path)
    with HugeImage(path) as image:
        for first, last in [(0, 40), (0, 64), (30, 94), (60, 124), (124, 130), (237, 301)]:
            np.testing.assert_array_equal(image.rows(first, last), expected[first:last])


def test_what_was_forgotten_is_never_made_up(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(photograph(HEIGHT, WIDTH)))
    with HugeImage(path) as image:
        image.rows(100, 120)
        with pytest.raises(ValueError, match="row 99 was forgotten"):
            image.rows(99, 120)


def test_a_package_without_its_library_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(photograph(HEIGHT, WIDTH)))
    monkeypatch.setitem(sys.modules, "pyvips", None)
    with pytest.raises(MissingRuntimeError, match="pyvips is installed, but does not load"):
        HugeImage(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_half_a_file_is_refused_with_its_name(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name, Image.fromarray(photograph(HEIGHT, WIDTH)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InvalidFileError, match=f"{name} cannot be read: "):
        whole(path)


def test_what_has_another_meaning_is_refused(tmp_path: Path) -> None:
    photo = Image.fromarray(photograph(HEIGHT, WIDTH))
    with pytest.raises(InvalidFileError, match="its pixels are 4 bands of uchar, cmyk"):
        whole(saved(tmp_path / "a.jpg", photo.convert("CMYK")))
    with pytest.raises(InvalidFileError, match="its pixels are 1 bands of float"):
        whole(saved(tmp_path / "a.tif", photo.convert("F")))
    exif = Image.Exif()
    exif[0x0112] = 6
    with pytest.raises(InvalidFileError, match="it lies on its side"):
        whole(saved(tmp_path / "turned.jpg", photo, exif=exif))
    (tmp_path / "text.tif").write_bytes(b"no image at all")
    with pytest.raises(InvalidFileError, match=r"text\.tif cannot be read"):
        whole(tmp_path / "text.tif")
