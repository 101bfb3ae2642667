"""Packaged networks exported without their preprocessing, each right under one convention alone: labels find which."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from foreign_graphs import decided_by_red, labelled_by_red
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import segdeploy
from segdeploy import artifact, workspace
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


def letterboxed(folder: Path, model: onnx.ModelProto) -> Path:
    """The images cut to half their height, and the masks that a network draws of them with grey above and below."""
    network = onnxruntime.InferenceSession(model.SerializeToString())
    labelled(folder)
    margin = SIZE // 4
    for path in (folder / "images").glob("*"):
        canvas = np.full((SIZE, SIZE, 3), 114, np.uint8)
        canvas[margin:-margin] = np.asarray(Image.open(path))[margin:-margin]
        Image.fromarray(canvas[margin:-margin]).save(path)
        (logits,) = network.run(None, {"taken": canvas.transpose(2, 0, 1)[None].astype(np.float32)})
        drawn = logits[0].argmax(axis=0)[margin:-margin].astype(np.uint8)
        Image.fromarray(drawn).save(folder / "masks" / path.name)
    return folder


def test_a_network_that_was_trained_on_letterboxed_images_is_run_so(
    packaged: dict[str, tuple[onnx.ModelProto, Spec]],
) -> None:
    """In the table, in a note, and in the manifest, which `inspect` shows; the colours are found all the same."""
    how = KNOWN["0..255"].preprocessing
    data = letterboxed(Path("data"), planted(*exported(packaged, "unet"), how))
    found = found_by_labels(packaged, "unet", how, data)
    assert preprocessing_of(found) == how
    assert found.table is not None
    best, plain = found.table.scores[0], found.table.stretching[0]
    assert (best.convention.name, best.miou) == ("0..255 letterboxed", 1.0)
    scores = f"(mIoU 1.000 letterboxed, {plain.miou:.3f} stretched)"
    assert any("trained on letterboxed images" in note and scores in note for note in found.notes)
    assert found.graph.spec.fit == "letterbox"
    assert segdeploy.evaluate(found.graph.path, data=data).miou == 1.0
    assert (segdeploy.evaluate(found.graph.path, data=data, fit="stretch").miou or 0) < 1.0
    manifest = json.loads(artifact.manifest_path(found.graph.path).read_text())
    assert manifest["origin"]["foreign"]["notes"] == list(found.notes)


def test_letterboxes_are_said_where_stretched_images_decide_nothing(
    packaged: dict[str, tuple[onnx.ModelProto, Spec]],
) -> None:
    """DeepLabv3 draws too little of stretched nuclei to tell two conventions apart."""
    how = KNOWN["0..255"].preprocessing
    data = letterboxed(Path("data"), planted(*exported(packaged, "deeplabv3"), how))
    with pytest.raises(UndecidedError, match="cannot be told apart on 6 images; it was trained on letterboxed images"):
        found_by_labels(packaged, "deeplabv3", how, data)


def test_where_stretching_is_right_nothing_is_said_of_letterboxes(
    packaged: dict[str, tuple[onnx.ModelProto, Spec]],
) -> None:
    """The same images in half their height, with the masks that people drew."""
    data = labelled(Path("data"))
    for path in (*data.glob("images/*"), *data.glob("masks/*")):
        with Image.open(path) as picture:
            picture.crop((0, SIZE // 4, SIZE, SIZE - SIZE // 4)).save(path)
    found = found_by_labels(packaged, "unet", KNOWN["0..255"].preprocessing, data)
    assert found.table is not None
    assert "0..255 letterboxed" in {score.convention.name for score in found.table.scores}
    assert not any("letterboxed" in note for note in found.notes)


def test_where_nothing_but_letterboxing_does_well_that_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then no preprocessing is taken: which of them is right cannot be said of images that are stretched."""
    plain = KNOWN["0..255"]
    boxed = dataclasses.replace(plain, name="0..255 letterboxed", letterboxed=True)
    scores = (
        conventions.Score(boxed, 0.8, 0.1, is_alike=False, is_ahead=True),
        conventions.Score(plain, 0.1, 0.1, is_alike=True, is_ahead=False),
    )
    monkeypatch.setattr(conventions, "tried", lambda *_, **__: conventions.Table(scores, 8))
    decided_by_red(Path("theirs.onnx"))
    labelled_by_red(Path("by_red"))
    with pytest.raises(UndecidedError, match="trained on letterboxed images"):
        segdeploy.adopt("theirs.onnx", name="mine", options=AdoptOptions(data=Path("by_red")))
