"""`engine.segment` takes a path, a Pillow image or an array, and refuses all else in one sentence."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SPEC, photograph
from PIL import Image

import segdeploy
from segdeploy.errors import InvalidRequestError

KINDS = "a photograph is a path, a Pillow image or uint8 RGB (H, W, 3), not "
PHOTO = photograph(20, 30)


class Named:
    """A path of another library."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return str(self._path)


def closed(path: Path) -> Image.Image:
    image = Image.open(path)
    image.close()
    return image


def truncated(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()[:300]))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("kind", [str, Path, Named, Image.open, lambda _: PHOTO, lambda _: PHOTO[::-1][::-1]])
def test_every_form_of_a_photograph_is_segmented(path: Path, kind: Callable[[Path], Any]) -> None:
    engine = segdeploy.NullEngine(SPEC)
    np.testing.assert_array_equal(engine.segment(kind(path)), engine.segment(PHOTO))


@pytest.mark.parametrize(
    "given,named",
    [
        (None, "NoneType."),
        (3, "int."),
        (b"photo.png", "bytes."),
        ([PHOTO], "list."),
        (io.BytesIO(), "BytesIO."),
        (np.uint8(3), "uint8."),
        (PHOTO.astype(float), "float64 (20, 30, 3)."),
        (PHOTO[..., 0], "uint8 (20, 30)."),
        (PHOTO[None], "uint8 (1, 20, 30, 3)."),
        (PHOTO[..., :2], "uint8 (20, 30, 2)."),
        (PHOTO[:0], "uint8 (0, 30, 3)."),
        (PHOTO[:, :0], "uint8 (20, 0, 3)."),
        (Image.new("RGB", (0, 0)), "an image of 0x0."),
        (Image.new("L", (0, 5)), "an image of 0x5."),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_all_else_is_refused_by_what_it_is(given: object, named: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        segdeploy.NullEngine(SPEC).segment(given)  # type: ignore[arg-type] # that is the point
    assert refused.value.what == KINDS + named
    assert refused.value.remedy == "Read it with segdeploy.read_image, or convert it."


@pytest.mark.parametrize(
    "make,reason",
    [
        (closed, "closed image"),
        (truncated, "truncated"),
        (lambda _: Image.new("F", (3, 3)), "pixels are floats"),
        (lambda _: Image.new("I", (3, 3)), "of mode I"),
    ],
)
def test_a_pillow_image_without_usable_pixels_is_refused(
    path: Path, make: Callable[[Path], Image.Image], reason: str
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        segdeploy.NullEngine(SPEC).segment(make(path))
    assert refused.value.what.startswith("the image cannot be used: ")
    assert reason in refused.value.what
    assert "\n" not in refused.value.what


@pytest.mark.parametrize("batch", [None, [PHOTO], "photo.png", Image.new("RGB", (64, 64))])
def test_a_batch_that_is_no_array_is_refused(batch: object) -> None:
    with pytest.raises(InvalidRequestError, match=rf"^the images are {type(batch).__name__}; this engine takes uint8"):
        segdeploy.NullEngine(SPEC).classify(batch)  # type: ignore[arg-type] # that is the point
