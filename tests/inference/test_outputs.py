"""The contract of every file in segdeploy/inference/outputs/: a new one is tested because it is there."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import SPEC, photograph, photographs
from inference_folders import below, written
from PIL import Image

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
    assert size_of(data, output.SUFFIX) in {(height, width), None}


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
