"""The contract of every file in segdeploy/inference/outputs/: a new one is tested because it is there."""

import dataclasses
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import shapely
import shapely.geometry
from conftest import SPEC, photograph, photographs
from hypothesis import given
from hypothesis import strategies as st
from inference_folders import below, written
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from segdeploy import images
from segdeploy.engines import Engine
from segdeploy.errors import InvalidRequestError
from segdeploy.images import Photograph
from segdeploy.inference import outputs, sources
from segdeploy.inference.outputs import OutputOptions, Segmented

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


@each
def test_it_names_the_options_that_it_depends_on(kind: str) -> None:
    """The journal goes by these names: a file of another opacity would be taken for one that is done."""
    output, image = outputs.load(kind), segmented()
    usual = output.encode(image)
    for other in (OutputOptions(opacity=0.9), OutputOptions(values=(7, 33))):
        changed = output.encode(dataclasses.replace(image, options=other))
        assert (changed != usual) == (outputs.made_as(kind, other) != "")
    assert outputs.made_as(kind, outputs.USUAL) == ""


@each
def test_an_option_that_nothing_depends_on_is_refused(kind: str) -> None:
    other = {"opacity": OutputOptions(opacity=0.9), "values": OutputOptions(values=(7, 33))}
    for option, options in other.items():
        if outputs.made_as(kind, options):
            outputs.require_used([kind], [option])
        else:
            with pytest.raises(InvalidRequestError, match=f"--{option} is for .*, of which none is written"):
                outputs.require_used([kind], [option])


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


# Polygons


def of(class_map: NDArray[np.uint8], **changes: Any) -> Segmented:  # noqa: ANN401 - fields of the Spec
    photo = Photograph.of(np.zeros((*class_map.shape, 3), np.uint8))
    return Segmented(photo, class_map, dataclasses.replace(SPEC, **changes))


class_maps = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).integers(0, 2, 1 + np.array([seed % 13, seed % 17]), dtype=np.uint8)
)


@given(class_map=class_maps)
def test_geojson_opened_by_shapely_is_the_class_map(class_map: NDArray[np.uint8]) -> None:
    document = json.loads(outputs.load("geojson").encode(of(class_map)))
    assert (document["type"], document["height"], document["width"]) == ("FeatureCollection", *class_map.shape)
    rows, columns = np.indices(class_map.shape) + 0.5
    times = np.zeros(class_map.shape, int)
    for feature in document["features"]:
        shape = shapely.geometry.shape(feature["geometry"])
        assert isinstance(shape, shapely.Polygon)
        assert shape.is_valid
        assert shape.exterior.is_ccw
        rings = feature["geometry"]["coordinates"]
        assert all(ring[0] == ring[-1] for ring in rings)
        assert all(type(value) is int for ring in rings for point in ring for value in point)
        inside = shapely.contains_xy(shape, columns, rows)
        assert (class_map[inside] == feature["properties"]["class_index"]).all()
        assert feature["properties"]["area_px"] == inside.sum() == shape.area
        times += inside
    assert (times == 1).all()


def test_a_feature_says_which_class_it_is() -> None:
    """Also to QuPath, which wants its own words."""
    features = json.loads(outputs.load("geojson").encode(of(np.array([[0, 1]], np.uint8))))["features"]
    assert [feature["properties"] for feature in features] == [
        {
            "class_index": 0,
            "class_name": "ground",
            "colour": "#14283c",
            "area_px": 1,
            "classification": {"name": "ground", "color": [20, 40, 60]},
        },
        {
            "class_index": 1,
            "class_name": "thing",
            "colour": "#ffc400",
            "area_px": 1,
            "classification": {"name": "thing", "color": [255, 196, 0]},
        },
    ]


def test_geojson_says_that_its_numbers_are_pixels_and_y_goes_down() -> None:
    crs = json.loads(outputs.load("geojson").encode(segmented()))["crs"]
    assert crs["type"] == "name"
    assert re.fullmatch(
        r'ENGCRS\["pixels of the photo",.*AXIS\["downward \(y\)",south\],.*\]', crs["properties"]["name"]
    )


def drawn(svg: bytes) -> NDArray[np.uint8]:
    """The class of each pixel by the even-odd rule: to the right of each side of a path, inside and outside change."""
    root = ET.fromstring(svg)  # noqa: S314 - we wrote it
    assert (root.attrib["fill-rule"], root.attrib["shape-rendering"]) == ("evenodd", "crispEdges")
    _, _, width, height = map(int, root.attrib["viewBox"].split())
    assert (root.attrib["width"], root.attrib["height"]) == (str(width), str(height))
    found = np.full((height, width), 255, np.uint8)
    for path in root:
        inside = np.zeros((height, width), bool)
        for x, upper, lower in vertical_sides(path.attrib["d"]):
            inside[upper:lower, x:] ^= True
        assert (found[inside] == 255).all(), "two paths share a pixel"
        found[inside] = int(path.attrib["id"].removeprefix("class-"))
    return found


def vertical_sides(path: str) -> list[tuple[int, int, int]]:
    """x, upper and lower y of those in a path of M, h, v and z."""
    assert re.fullmatch(r"(M\d+ \d+([hv]-?\d+)+z)+", path)
    sides = []
    for ring in path.removesuffix("z").split("z"):
        (x, y), steps = map(int, re.findall(r"\d+", ring)[:2]), re.findall(r"([hv])(-?\d+)", ring)
        first = y
        for letter, length in steps:
            if letter == "v":
                sides.append((x, min(y, y + int(length)), max(y, y + int(length))))
            x, y = (x + int(length), y) if letter == "h" else (x, y + int(length))
        sides.append((x, min(y, first), max(y, first)))
    return sides


@given(class_map=class_maps)
def test_svg_opened_by_a_parser_is_the_class_map(class_map: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(drawn(outputs.load("svg").encode(of(class_map))), class_map)


def test_a_path_has_the_colour_and_the_name_of_its_class() -> None:
    names = ("ground & \ufffe", "<thing>")
    svg = ET.fromstring(outputs.load("svg").encode(of(np.array([[0, 1]], np.uint8), classes=names)))  # noqa: S314
    assert [(path.attrib["id"], path.attrib["fill"], path[0].text) for path in svg] == [
        ("class-0", "#14283c", "ground & \\ufffe"),
        ("class-1", "#ffc400", "<thing>"),
    ]


# How they are made


@pytest.mark.parametrize("opacity", [0.0, 0.3, 1.0])
def test_the_colours_of_an_overlay_are_as_opaque_as_was_asked_for(opacity: float) -> None:
    image = dataclasses.replace(segmented(40, 60), options=OutputOptions(opacity=opacity))
    tinted = images.overlay(image.photo, image.class_map, SPEC.colours, opacity=opacity)
    for kind, shown in (("overlay", tinted), ("side", np.concatenate([image.photo, tinted], axis=1))):
        with (
            Image.open(io.BytesIO(outputs.load(kind).encode(image))) as found,
            Image.open(io.BytesIO(images.jpeg(shown))) as expected,
        ):
            np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_a_mask_of_the_datas_own_values_shows_the_same_colours() -> None:
    image = segmented()
    asked = dataclasses.replace(image, options=OutputOptions(values=(33, 7)))
    with (
        Image.open(io.BytesIO(outputs.load("mask").encode(image))) as usual,
        Image.open(io.BytesIO(outputs.load("mask").encode(asked))) as mask,
    ):
        np.testing.assert_array_equal(np.asarray(mask), np.where(image.class_map == 1, 7, 33))
        np.testing.assert_array_equal(np.asarray(mask.convert("RGB")), np.asarray(usual.convert("RGB")))
    read = np.load(io.BytesIO(outputs.load("npy").encode(asked)))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, np.where(image.class_map == 1, 7, 33))
