"""The contract of every file in segdeploy/inference/outputs/: a new one is tested because it is there."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SPEC, photograph, photographs
from hypothesis import given
from hypothesis import strategies as st
from inference_folders import below, written
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from segdeploy.engines import Engine
from segdeploy.errors import InvalidRequestError
from segdeploy.images import Photograph
from segdeploy.inference import outputs, sources
from segdeploy.inference.outputs import Segmented

FEWER_LINES_THAN = 60
HEAVY = {
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "cuda",
    "safetensors",
    "jinja2",
    "rich",
}
LOADED = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("output", sys.argv[1])
spec.loader.exec_module(importlib.util.module_from_spec(spec))
print(json.dumps([name.partition(".")[0] for name in sys.modules]))
"""

each = pytest.mark.parametrize("kind", outputs.names())


def segmented(height: int = 90, width: int = 150) -> Segmented:
    """A photograph whose bright half is class 1."""
    photo = photograph(height, width)
    return Segmented(Photograph.of(photo), (photo.mean(axis=2) > 127).astype(np.uint8), SPEC)


def module_file(kind: str) -> Path:
    return Path(str(outputs.load(kind).__dict__["__file__"]))


def size_of(data: bytes, suffix: str) -> tuple[int, ...] | None:
    """(height, width) of what a file shows; None where the format has no pixels."""
    if suffix == ".npy":
        array = np.load(io.BytesIO(data))
        return tuple(array.shape[:2])
    if suffix in Image.registered_extensions():
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return image.height, image.width
    return None


# Every kind


@each
@pytest.mark.parametrize("height,width", [(90, 150), (1, 1), (1, 40)])
def test_what_is_encoded_has_the_size_of_the_photo(kind: str, height: int, width: int) -> None:
    output = outputs.load(kind)
    data = output.encode(segmented(height, width))
    assert data
    assert size_of(data, output.SUFFIX) in {(height, width), (height, 2 * width), None}  # twice: beside one another


@each
def test_the_same_image_gives_the_same_bytes(kind: str) -> None:
    """A later run rewrites the same files, so that copies of a folder do not differ."""
    encode = outputs.load(kind).encode
    assert encode(segmented()) == encode(segmented())


@each
def test_the_image_is_left_as_it_is(kind: str) -> None:
    """The next output is made from it."""
    image = segmented()
    image.photo.flags.writeable = image.class_map.flags.writeable = False
    outputs.load(kind).encode(image)


@each
def test_it_has_a_folder_of_its_own(kind: str) -> None:
    others = {outputs.folder(Path("masks"), name) for name in outputs.names() if name != kind}
    folder = outputs.folder(Path("masks"), kind)
    assert folder not in others
    assert folder.absolute().parent == Path.cwd()


@each
def test_its_files_are_written_and_are_no_input_of_the_next_run(workspace: Path, engine: Engine, kind: str) -> None:
    photographs(workspace / "photos", "a.jpg", "sub/b.png")
    (workspace / "photos/notes.md").write_text("")
    before = below(".")
    first = sources.find(["."], leave_out=Path("masks"))
    summary = written(engine, kind)
    suffix = outputs.load(kind).SUFFIX
    assert (summary.done, summary.failed) == (2, [])
    assert below(outputs.folder(Path("masks"), kind)) == [f"a{suffix}", f"sub/b{suffix}"]
    assert len(below(".")) == len(before) + 2
    assert sources.find(["."], leave_out=Path("masks")) == first


@each
def test_its_file_is_short(kind: str) -> None:
    assert len(module_file(kind).read_text(encoding="utf-8").splitlines()) < FEWER_LINES_THAN


@each
def test_it_imports_nothing_heavy(kind: str) -> None:
    """A machine that only infers has no framework, and every run of `infer` loads every kind."""
    done = subprocess.run([sys.executable, "-c", LOADED, module_file(kind)], capture_output=True, text=True, check=True)
    assert not HEAVY & set(json.loads(done.stdout))


# The registry


def test_a_leading_underscore_is_no_kind() -> None:
    assert {"mask", "npy", "overlay"} <= set(outputs.names())
    assert not [name for name in outputs.names() if name.startswith("_")]


def test_masks_go_to_out_and_the_rest_beside_it() -> None:
    assert outputs.folder(Path("some/masks"), "mask") == Path("some/masks")
    assert outputs.folder(Path("some/masks"), "overlay") == Path("some/masks-overlays")
    assert outputs.folder(Path("some/masks"), "npy") == Path("some/masks-npy")


def test_a_folder_without_a_name_gets_the_one_it_has_on_the_disk(workspace: Path) -> None:
    """`.-overlays` would be a hidden folder inside the masks."""
    assert outputs.folder(Path(), "overlay") == Path(f"{workspace}-overlays")
    assert outputs.folder(Path("export/.."), "npy") == Path(f"{workspace}-npy")
    assert outputs.folder(Path("/"), "overlay") == Path("/-overlays")


@pytest.mark.parametrize("text", ["masks", "_base", "mask,png", "../mask", "Mask"])
def test_an_unknown_kind_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^there is no output '.*'\.") as refused:
        outputs.parse(text)
    assert refused.value.remedy == f"Choose one or more of {', '.join(outputs.names())}."


@pytest.mark.parametrize("text", ["", " , "])
def test_no_kind_at_all_is_refused(text: str) -> None:
    """The run would segment everything and keep nothing."""
    with pytest.raises(InvalidRequestError, match="no kind of output was named"):
        outputs.parse(text)


def test_kinds_keep_their_order_and_count_once() -> None:
    assert outputs.parse("npy, mask,npy") == ("npy", "mask")


# The kinds there are


def test_a_class_map_is_read_back_as_it_was() -> None:
    image = segmented()
    read = np.load(io.BytesIO(outputs.load("npy").encode(image)))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, image.class_map)


def test_photo_and_overlay_lie_beside_one_another() -> None:
    image = segmented(40, 60)
    with (
        Image.open(io.BytesIO(outputs.load("side").encode(image))) as both,
        Image.open(io.BytesIO(outputs.load("overlay").encode(image))) as overlay,
    ):
        assert both.size == (120, 40)
        left, right = np.asarray(both)[:, :60].astype(int), np.asarray(both)[:, 60:].astype(int)
        assert np.abs(left - image.photo)[:, :48].mean() < 12
        assert np.abs(right - np.asarray(overlay))[:, 12:].mean() < 12
    assert np.abs(left - right).mean() > 20


def decoded(annotation: dict[str, Any]) -> NDArray[np.bool_]:
    """As COCO's tools read run lengths: down the columns, first those outside (cocoapi, maskApi.c, rleDecode)."""
    flags = np.arange(len(annotation["segmentation"]["counts"])) % 2 == 1
    flat = np.repeat(flags, annotation["segmentation"]["counts"])
    return flat.reshape(annotation["segmentation"]["size"], order="F")


@given(height=st.integers(1, 30), width=st.integers(1, 30), classes=st.integers(1, 2), seed=st.integers(0, 20))
def test_run_lengths_are_those_of_the_class_map(height: int, width: int, classes: int, seed: int) -> None:
    class_map = np.random.default_rng(seed).integers(0, classes, (height, width), dtype=np.uint8)
    photo = Photograph.of(np.zeros((height, width, 3), np.uint8))
    found = json.loads(outputs.load("rle").encode(Segmented(photo, class_map, SPEC)))
    assert [each["category_id"] for each in found] == np.unique(class_map).tolist()
    for each in found:
        mask = class_map == each["category_id"]
        assert each["category"] == SPEC.classes[each["category_id"]]
        np.testing.assert_array_equal(decoded(each), mask)
        left, top, across, down = each["bbox"]
        assert (each["area"], mask[top : top + down, left : left + across].sum()) == (mask.sum(), mask.sum())
        assert mask[top].any()
        assert mask[:, left].any()
        assert mask[top + down - 1].any()
        assert mask[:, left + across - 1].any()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools 2.0.11
def test_run_lengths_are_read_by_cocos_own_tools() -> None:
    image = segmented(50, 70)
    for each in json.loads(outputs.load("rle").encode(image)):
        packed = coco.frPyObjects(each["segmentation"], 50, 70)
        np.testing.assert_array_equal(coco.decode(packed), image.class_map == each["category_id"])
        assert coco.area(packed) == each["area"]
        assert coco.toBbox(packed).tolist() == each["bbox"]
