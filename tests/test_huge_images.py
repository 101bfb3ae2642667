"""Images that are read from the top down hold the pixels that `images.read` gives, whatever their format."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import photograph
from numpy.typing import NDArray
from PIL import Image

from segdeploy import huge_images, images
from segdeploy.errors import InvalidFileError, MissingRuntimeError
from segdeploy.huge_images import HugeImage
from segdeploy.image_files import InRowsError

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


@pytest.mark.parametrize("height", [301, 512, 513])
def test_rows_of_tiles_are_those_of_the_image(tmp_path: Path, height: int) -> None:
    """Whichever are asked for: a row of tiles is decoded whole."""
    rasterio = pytest.importorskip("rasterio")
    expected = np.random.default_rng(0).integers(0, 256, (height, 210, 3), dtype=np.uint8)
    how = {"tiled": True, "blockxsize": 128, "blockysize": 128, "photometric": "rgb", "compress": "deflate"}
    about = {"driver": "GTiff", "height": height, "width": 210, "count": 3, "dtype": "uint8"}
    place = {"transform": rasterio.Affine(1, 0, 5, 0, -1, 5)}
    with rasterio.open(tmp_path / "a.tif", "w", **about, **how, **place) as file:
        file.write(expected.transpose(2, 0, 1))
    seen = np.zeros_like(expected)
    with HugeImage(tmp_path / "a.tif") as image:

        def watch(top: int, rows: NDArray[np.uint8]) -> None:
            assert not seen[top : top + len(rows)].any(), "given once"
            seen[top : top + len(rows)] = rows

        image.watched_by = watch
        for first in range(0, height, 37):
            last = min(first + 64, height)
            np.testing.assert_array_equal(image.rows(first, last), expected[first:last])
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_half_a_file_is_refused_with_its_name(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name, Image.fromarray(photograph(HEIGHT, WIDTH)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InvalidFileError, match=f"{name} cannot be read: "):
        whole(path)


@pytest.mark.parametrize("codec", ["tiff_adobe_deflate", "tiff_lzw", "packbits", None])
@pytest.mark.parametrize("is_tiled", [True, False])
@pytest.mark.parametrize("damage", ["cut", "zeros"])
def test_a_damaged_tiff_is_never_made_up(tmp_path: Path, codec: str | None, damage: str, *, is_tiled: bool) -> None:
    """Libvips gives zeros for a tile that it cannot decode."""
    rasterio = pytest.importorskip("rasterio")
    path = tmp_path / "a.tif"
    noise = np.random.default_rng(0).integers(0, 256, (3, 512, 640), dtype=np.uint8)
    names = {"tiff_adobe_deflate": "deflate", "tiff_lzw": "lzw", "packbits": "packbits", None: None}
    how = {"tiled": True, "blockxsize": 128, "blockysize": 128} if is_tiled else {}
    about = {"driver": "GTiff", "height": 512, "width": 640, "count": 3, "dtype": "uint8", "photometric": "rgb"}
    place = {"transform": rasterio.Affine(1, 0, 5, 0, -1, 5)}
    with rasterio.open(path, "w", compress=names[codec], interleave="pixel", **about, **how, **place) as file:
        file.write(noise)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[len(data) * 2 // 3 :]
    else:
        data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    path.write_bytes(data)
    try:
        found = whole(path)
    except InvalidFileError:
        return
    np.testing.assert_array_equal(found, images.read(path))


def seen_in_rows(path: Path) -> bool:
    """Whether the usual reader hands it over."""
    try:
        images.opened_photograph(path, most=100)
    except InvalidFileError as error:
        return isinstance(error.__cause__, InRowsError)
    return False


def test_what_has_another_meaning_is_read_by_the_usual_reader(tmp_path: Path) -> None:
    photo = Image.fromarray(photograph(HEIGHT, WIDTH))
    assert seen_in_rows(saved(tmp_path / "a.jpg", photo))
    assert seen_in_rows(saved(tmp_path / "a.tif", photo))
    assert seen_in_rows(saved(tmp_path / "a.png", photo))
    exif = Image.Exif()
    exif[0x0112] = 3
    for name, other, how in (
        ("cmyk.jpg", photo.convert("CMYK"), {}),
        ("turned.jpg", photo, {"exif": exif}),
        ("turned.tif", photo, {"exif": exif}),
        ("a.bmp", photo, {}),
        ("a.webp", photo, {}),
        ("float.tif", photo.convert("F"), {}),
        ("cmyk.tif", photo.convert("CMYK"), {}),
        ("white-is-0.tif", photo.convert("L"), {"tiffinfo": {262: 0}}),
        ("one-bit.tif", photo.convert("1"), {}),
    ):
        assert not seen_in_rows(saved(tmp_path / name, other, **how)), name


def test_exif_behind_the_pixels_is_looked_for(tmp_path: Path) -> None:
    """Pillow finds it once it has decoded them, and turns the photo."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / "a.png", Image.fromarray(photograph(20, 30)), exif=exif)
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    last = data.index(b"IEND") - 4
    path.write_bytes(data[:start] + data[end:last] + data[start:end] + data[last:])
    assert images.read(path).shape[:2] == (30, 20)
    assert not seen_in_rows(path)


def test_a_side_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_images, "LONGEST_SIDE", 200)
    with pytest.raises(InvalidFileError, match=r"a\.png cannot be read: it is 203x301, longer than 200 pixels"):
        whole(saved(tmp_path / "a.png", Image.fromarray(photograph(HEIGHT, WIDTH))))


@pytest.mark.parametrize("name", ["text.tif", "text.png"])
def test_what_is_no_image_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"II no image at all")
    with pytest.raises(InvalidFileError, match=r"cannot be read: "):
        whole(tmp_path / name)
