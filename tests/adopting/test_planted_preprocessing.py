"""Packaged networks exported without their preprocessing, each right under one convention alone: labels find which."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import segdeploy
from segdeploy import workspace
from segdeploy.adopting.options import AdoptOptions, UndecidedError
from segdeploy.checkpoints import checkpoint
from segdeploy.data import layouts
from segdeploy.graphs import to_onnx
from segdeploy.graphs.graph import Graph
from segdeploy.origin import Preprocessing
from segdeploy.proof import conventions
from segdeploy.spec import Spec

SIZE = 96  # small, for speed: the packaged networks are right at it too
NUCLEI = Path(__file__).parents[2] / "examples" / "nuclei"
COLOURED = ("7187", "8e50", "aa58", "cbff")  # the four of twenty that are not grey: only these tell RGB from BGR
GREY = ("3582", "4d09", "76c4", "c3be")
KNOWN = {each.name: each for each in conventions.customary(3)}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def packaged() -> dict[str, tuple[onnx.ModelProto, Spec]]:
    """The packaged networks as graphs of bytes, at a small size; each is exported when it is first asked for."""
    return {}


def exported(packaged: dict[str, tuple[onnx.ModelProto, Spec]], name: str) -> tuple[onnx.ModelProto, Spec]:
    if name not in packaged:
        network, spec = checkpoint.load(workspace.PACKAGED / f"{name}.safetensors")
        spec = dataclasses.replace(spec, height=SIZE, width=SIZE)
        packaged[name] = to_onnx.to_graph(network, spec), spec
    return packaged[name]


def planted(model: onnx.ModelProto, spec: Spec, how: Preprocessing, layout: str = "NCHW") -> onnx.ModelProto:
    """The network without its own normalisation, behind one that undoes `how`: (1, 3, H, W) floats -> logits."""
    nodes = list(Graph(model).nodes)
    decision = next(index for index, node in enumerate(nodes) if node.op_type == "ArgMax")
    normalised = next(index for index, node in enumerate(nodes) if node.op_type == "Mul")
    gain, level = np.array(how.deviation) / how.scale / 255, np.array(how.mean) / how.scale / 255
    if how.channels == "bgr":
        gain, level = gain[::-1], level[::-1]
    mean, deviation = np.array(spec.mean), np.array(spec.std)
    constants = {"planted gain": gain / deviation, "planted level": (level - mean) / deviation}
    undo = [
        helper.make_node("Transpose", ["taken"], ["upright"], perm=[layout.index(axis) for axis in "NCHW"]),
        helper.make_node("Gather", ["upright", "planted order"], ["rgb"], axis=1),
        helper.make_node("Mul", ["rgb", "planted gain"], ["scaled"]),
        helper.make_node("Add", ["scaled", "planted level"], [nodes[normalised].output[0]]),
    ]
    side = {"N": 1, "C": 3, "H": SIZE, "W": SIZE}
    order = [2, 1, 0] if how.channels == "bgr" else [0, 1, 2]
    held = [
        numpy_helper.from_array(value.reshape(3, 1, 1).astype(np.float32), name) for name, value in constants.items()
    ]
    graph = helper.make_graph(
        [*undo, *nodes[normalised + 1 : decision]],
        "theirs",
        [helper.make_tensor_value_info("taken", TensorProto.FLOAT, [side[axis] for axis in layout])],
        [helper.make_tensor_value_info(nodes[decision].input[0], TensorProto.FLOAT, None)],
        [*model.graph.initializer, *held, numpy_helper.from_array(np.array(order), "planted order")],
    )
    whole = Graph(helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version))
    whole.drop_unread_constants()
    return whole.model


def labelled(folder: Path, *, names: tuple[str, ...] = (*COLOURED, *GREY), contrast: float = 1.0) -> Path:
    """Images of nuclei, the last two of which prove, the others decide.

    `contrast`: of their values, above 100.
    """
    files = [path.name for start in names for path in NUCLEI.glob(f"images/{start}*")]
    for kind, filtered in (("images", Image.Resampling.BILINEAR), ("masks", Image.Resampling.NEAREST)):
        (folder / kind).mkdir(parents=True)
        for file in files:
            with Image.open(NUCLEI / kind / file) as picture:
                plain = picture.convert("RGB") if kind == "images" else picture
                small = np.asarray(plain.resize((SIZE, SIZE), filtered))
            if kind == "images" and contrast < 1:
                small = (100 + contrast * small).round().astype(np.uint8)
            Image.fromarray(small).save(folder / kind / file)
    (folder / "val.txt").write_text("\n".join(files[-2:]) + "\n")
    shutil.copy(NUCLEI / "classes.csv", folder)
    return folder


def found_by_labels(
    packaged: dict[str, tuple[onnx.ModelProto, Spec]],
    network: str,
    how: Preprocessing,
    data: Path,
    layout: str = "NCHW",
) -> segdeploy.Adopted:
    """What `adopt --data` makes of a network that is right under `how` alone."""
    Path("theirs.onnx").write_bytes(planted(*exported(packaged, network), how, layout).SerializeToString())
    return segdeploy.adopt("theirs.onnx", name="mine", options=AdoptOptions(data=data, proof_kit=False))


def preprocessing_of(found: segdeploy.Adopted) -> Preprocessing:
    foreign = found.graph.origin.foreign
    assert foreign is not None
    return foreign.reading.preprocessing


CONVENTIONS = ("0..1", "-1..1", "imagenet", "imagenet bgr", "0..255", "0..255 bgr", "caffe bgr", "min-max")
ELSEWHERE = {"0..255": "deeplabv3", "0..255 bgr": "segnet", "imagenet": "pspnet"}  # besides U-Net, which has all
PLANTED = [("unet", name) for name in CONVENTIONS] + [(network, name) for name, network in ELSEWHERE.items()]


@pytest.mark.parametrize("network, name", PLANTED)
def test_labels_find_the_preprocessing_that_is_planted(
    network: str, name: str, packaged: dict[str, tuple[onnx.ModelProto, Spec]]
) -> None:
    """Six images are enough; what was found is what is deployed. BGR comes in NHWC, as from TensorFlow.

    min-max is planted with images whose values lie between 100 and 164: others it leaves nearly as they are.
    """
    data = labelled(Path("data"), contrast=0.25 if name == "min-max" else 1.0)
    layout = "NHWC" if name == "imagenet bgr" else "NCHW"
    found = found_by_labels(packaged, network, KNOWN[name].preprocessing, data, layout)
    assert preprocessing_of(found) == KNOWN[name].preprocessing
    assert found.table is not None
    assert found.table.scores[0].convention.name == name
    assert found.graph.certificate is not None
    assert found.graph.certificate.passed


@pytest.mark.parametrize("network, name, other", [("deeplabv3", "imagenet", "caffe"), ("segnet", "0..1", "min-max")])
def test_what_six_images_do_not_tell_apart_is_said(
    network: str, name: str, other: str, packaged: dict[str, tuple[onnx.ModelProto, Spec]]
) -> None:
    """DeepLabv3 is unsure at a quarter of its size; images that fill their range are left as they are by min-max."""
    with pytest.raises(UndecidedError, match="cannot be told apart on 6 images") as refused:
        found_by_labels(packaged, network, KNOWN[name].preprocessing, labelled(Path("data")))
    table = refused.value.table
    assert table is not None
    assert {name, other} <= {score.convention.name for score in table.scores if score.is_alike}
    assert not workspace.EXPORTS.exists()


def test_grey_images_do_not_tell_rgb_from_bgr(packaged: dict[str, tuple[onnx.ModelProto, Spec]]) -> None:
    """Both are named with the table, and nothing is adopted."""
    data = labelled(Path("data"), names=GREY)
    with pytest.raises(UndecidedError, match=r"0\.\.255, 0\.\.255 bgr cannot be told apart") as refused:
        found_by_labels(packaged, "unet", KNOWN["0..255"].preprocessing, data)
    assert refused.value.table is not None
    assert not workspace.EXPORTS.exists()


def test_the_mean_of_the_images_themselves_is_tried(packaged: dict[str, tuple[onnx.ModelProto, Spec]]) -> None:
    """What ESPNet's trainer does; the numbers are those of two more images, so they are near, and that is said."""
    data = labelled(Path("data"))
    opened = layouts.open_folder(data)
    numbers = {each.name: each.preprocessing for each in conventions.standardised(3, [*opened.train, *opened.val])}
    found = found_by_labels(packaged, "unet", numbers["own mean, /255 bgr"], data)
    assert "own mean, /255 bgr" in found.source
    assert any("mean and deviation are those of 6 images" in note for note in found.notes)
