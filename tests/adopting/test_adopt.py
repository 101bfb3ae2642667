"""A graph that somebody else trained draws the same masks in its deployed form, or is refused with the reason."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from foreign_graphs import SIZE, Foreign, noise
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image

import segdeploy
from segdeploy import artifact, workspace
from segdeploy.adopting.options import AdoptOptions, UndecidedError
from segdeploy.errors import GateFailedError, InvalidFileError, InvalidRequestError
from segdeploy.graphs import reading
from segdeploy.proof.onnx_reference import OnnxReference
from segdeploy.spec import Precision

IMAGENET = AdoptOptions(preset="imagenet")
AGREEING = 0.9999  # of the pixels; the others are near-ties

GRAPHS = st.builds(
    Foreign,
    layout=st.sampled_from(["NCHW", "NHWC", "CHWN", "HWCN"]),
    dtype=st.sampled_from(["float32", "float16", "uint8"]),
    kind=st.sampled_from(["scores", "softmax last", "sigmoid", "logit", "class map", "gaps"]),
    channels=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
    opset=st.sampled_from([9, 11, 13, 17, 20, 22]),
    batch=st.sampled_from([1, None]),
    sides=st.sampled_from([SIZE, (None, None)]),
    seed=st.integers(0, 9),
).filter(lambda each: each.channels > 1 or each.layout != "CHWN")  # one grey image: nobody tells it from NHWC
PREPARED = st.sampled_from(
    [
        AdoptOptions(preset="0..1"),
        AdoptOptions(preset="imagenet", channels="bgr"),
        AdoptOptions(scale=1 / 127.5, mean=[1.0], deviation=[1.0]),
    ]
)


@pytest.fixture
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@settings(
    max_examples=25,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # an example is small as it is
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(foreign=GRAPHS, options=PREPARED)
@pytest.mark.usefixtures("_here")
def test_an_adopted_graph_draws_the_masks_of_its_original(foreign: Foreign, options: AdoptOptions) -> None:
    """Alone and in a batch of three, whatever order, type, kind, opset and declared shapes the original has."""
    path = foreign.save(Path("theirs.onnx"))
    options = AdoptOptions(channels="bgr") if foreign.dtype == "uint8" else options
    is_map = foreign.kind in {"class map", "gaps"}
    values = (0, 7, 255) if foreign.kind == "gaps" else ()
    asked = dataclasses.replace(options, size=SIZE, classes=3 if is_map else None, class_values=values, overwrite=True)
    graph = segdeploy.adopt(path, name="mine", options=asked).graph
    origin = graph.origin.foreign
    assert origin is not None
    assert (origin.reading.layout, graph.certificate) == (foreign.layout, None)
    reference = OnnxReference(path, graph.spec, origin.reading)
    images = np.random.default_rng(foreign.seed).integers(0, 256, (3, *SIZE, 3), np.uint8)
    drawn = onnxruntime.InferenceSession(graph.path).run(None, {"images": images})[0]
    expected, tied = (np.stack(each) for each in zip(*map(reference.class_map, images), strict=True))
    assert (drawn.dtype, drawn.shape) == (np.uint8, (3, *SIZE))
    assert ((drawn != expected) & ~tied).sum() == 0
    assert ((drawn == expected) | tied).mean() >= AGREEING
    assert tied.mean() < 0.01


def test_the_reference_is_the_original_in_onnx_runtime(tmp_path: Path) -> None:
    """Its own definition, written here once more: (pixel / 255 - mean) / deviation, the largest score wins."""
    path = Foreign().save(tmp_path / "theirs.onnx")
    session = onnxruntime.InferenceSession(path)
    image = np.random.default_rng(2).integers(0, 256, (*SIZE, 3), np.uint8)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    taken = ((image / 255 - mean) / deviation).transpose(2, 0, 1)[None].astype(np.float32)
    expected = session.run(None, {"in:put/0": taken})[0][0].argmax(axis=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        graph = segdeploy.adopt(path, name="mine", options=IMAGENET).graph
    assert graph.origin.foreign is not None
    drawn, _ = OnnxReference(path, graph.spec, graph.origin.foreign.reading).class_map(image)
    np.testing.assert_array_equal(drawn, expected)


@pytest.mark.usefixtures("_here")
def test_an_adopted_graph_is_proven_served_and_quantized_by_its_name() -> None:
    path, data = Foreign(kind="scores").save(Path("theirs.onnx")), noise(Path("data"), 8)
    adopted = segdeploy.adopt(path, name="mine", options=dataclasses.replace(IMAGENET, data=data))
    found = adopted.graph.certificate
    assert found is not None
    assert (found.reference, found.proves, found.images) == ("ONNX Runtime", True, 8)
    assert found.batches == {1, 3}
    assert (workspace.EXPORTS / "mine.fp32.proof").is_file()
    assert segdeploy.parity("mine", engine="ort:fp32").proves
    (half,) = segdeploy.export("mine", precision="fp16")
    assert half.certificate is not None
    assert half.certificate.proves
    assert half.origin.network_sha256 == artifact.sha256(path)
    report = segdeploy.infer(data / "images", model="mine", engine="ort:fp16", out="masks")
    assert len(list(Path("masks").glob("*.png"))) == 8, report


@pytest.mark.usefixtures("_here")
def test_a_graph_that_somebody_quantized_is_taken_as_it_is() -> None:
    """Its own rounding is part of it; to round it once more would be another network."""
    model = Foreign().model()
    scale = [
        onnx.numpy_helper.from_array(np.array(0.05, np.float32), "step"),
        onnx.numpy_helper.from_array(np.array(0, np.int8), "zero"),
    ]
    model.graph.initializer.extend(scale)
    conv = model.graph.node[0]
    rounding = [
        helper.make_node("QuantizeLinear", [conv.input[0], "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["dq"]),
    ]
    conv.input[0] = "dq"
    nodes = [*rounding, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    Path("theirs.onnx").write_bytes(model.SerializeToString())
    data = noise(Path("data"), 6)
    found = segdeploy.adopt("theirs.onnx", name="mine", options=dataclasses.replace(IMAGENET, data=data))
    assert found.graph.certificate is not None
    assert found.graph.certificate.proves
    with pytest.raises(GateFailedError, match="not quantized again"):
        segdeploy.export("mine", precision="int8")


@pytest.mark.usefixtures("_here")
def test_without_images_it_is_unproven_and_asks_for_some() -> None:
    """Exit 3 to be served, exit 2 to make something from it: the rules for unproven files."""
    segdeploy.adopt(Foreign().save(Path("theirs.onnx")), name="mine", options=IMAGENET)
    data = noise(Path("data"))
    with pytest.raises(InvalidFileError, match="is not proven"):
        segdeploy.infer(data / "images", model="mine", engine="ort:fp32")
    with pytest.raises(InvalidRequestError, match="adopted without any"):
        segdeploy.export("mine", precision="fp16")
    assert segdeploy.parity("mine", engine="ort:fp32", data=data).proves


@pytest.mark.usefixtures("_here")
def test_another_original_makes_a_graph_stale_and_a_changed_one_is_refused() -> None:
    path, data = Foreign().save(Path("theirs.onnx")), noise(Path("data"))
    graph = segdeploy.adopt(path, name="mine", options=dataclasses.replace(IMAGENET, data=data)).graph
    assert not workspace.is_stale(graph)
    Foreign(seed=5).save(path)
    assert workspace.is_stale(graph)
    with pytest.raises(InvalidFileError, match="no longer the file"):
        workspace.original_of(graph)
    with pytest.raises(InvalidRequestError, match="was adopted"):
        segdeploy.export("mine")


@pytest.mark.usefixtures("_here")
def test_a_planted_fault_in_the_deployed_graph_is_found() -> None:
    """Weights that are zero: by the old manifest the file is refused, by a new one its masks."""
    path, data = Foreign().save(Path("theirs.onnx")), noise(Path("data"))
    graph = segdeploy.adopt(path, name="mine", options=dataclasses.replace(IMAGENET, data=data)).graph
    model = onnx.load(graph.path)
    _zero_weights(model)
    graph.path.write_bytes(model.SerializeToString())
    with pytest.raises(InvalidFileError, match="not the file its manifest describes"):
        segdeploy.parity("mine", engine="ort:fp32", data=data)
    artifact.write_manifest(dataclasses.replace(graph, sha256=artifact.sha256(graph.path), certificate=None))
    assert not segdeploy.parity("mine", engine="ort:fp32", data=data).passed


def _zero_weights(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 4 and tensor.dims[2] == 3:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))


@pytest.mark.parametrize("foreign", [Foreign(batch=4), Foreign(batch=3, layout="NHWC", kind="class map")])
@pytest.mark.usefixtures("_here")
def test_a_batch_that_is_declared_fixed_and_is_not_is_free(foreign: Foreign) -> None:
    """What a file declares counts for nothing: it runs with one image as well."""
    data = noise(Path("data"))
    options = dataclasses.replace(IMAGENET, classes=3, data=data)
    found = segdeploy.adopt(foreign.save(Path("theirs.onnx")), name="mine", options=options)
    assert found.graph.certificate is not None
    assert found.graph.certificate.proves
    assert onnx.load(found.graph.path).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


# What is refused


def changed(foreign: Foreign, change: str) -> onnx.ModelProto:
    """A graph with one thing that cannot be adopted."""
    model = foreign.model()
    graph, (conv, *_) = model.graph, [node for node in model.graph.node if node.op_type == "Conv"]
    if change == "two inputs":
        graph.input.append(helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, 3, 4, 4]))
        graph.node.append(helper.make_node("Relu", ["state"], ["left"]))
    elif change == "custom":
        conv.domain = "my.company"
        model.opset_import.append(helper.make_opsetid("my.company", 1))
    elif change == "classifier":
        graph.node.append(helper.make_node("GlobalAveragePool", ["c"], ["p"]))
        graph.node.append(helper.make_node("Flatten", ["p"], ["flat"]))
        graph.output[0].CopyFrom(helper.make_tensor_value_info("flat", TensorProto.FLOAT, None))
    elif change == "boxes":
        graph.node.append(helper.make_node("Flatten", ["c"], ["flat"]))
        graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, None))
    elif change == "cyclic":
        graph.node.append(helper.make_node("Add", ["c", "y"], ["x"]))
        graph.node.append(helper.make_node("Relu", ["x"], ["y"]))
    elif change == "huge":
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([10**5, 10**5]), "sides"))
        graph.node.append(helper.make_node("ConstantOfShape", ["sides"], ["field"]))
    elif change == "four images":
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([4, 3, *SIZE]), "sides"))
        graph.node.append(helper.make_node("Reshape", ["c", "sides"], ["y"]))
        graph.output[0].name = "y"
    elif change == "old":
        model.opset_import[0].version = 6
    return model


@pytest.mark.parametrize(
    "change, reason",
    [
        ("two inputs", "takes 2 inputs"),
        ("custom", "custom operator Conv of my.company"),
        ("classifier", "is no segmentation"),
        ("boxes", "no mask"),
        ("cyclic", "is cyclic"),
        ("huge", "too large to run"),
        ("four images", "takes 4 images at once, and not one alone"),
        ("old", "opset 6"),
    ],
)
@pytest.mark.usefixtures("_here")
def test_what_cannot_be_adopted_is_refused_with_the_reason(change: str, reason: str) -> None:
    Path("theirs.onnx").write_bytes(changed(Foreign(), change).SerializeToString())
    with pytest.raises(InvalidFileError, match=reason):
        segdeploy.adopt("theirs.onnx", name="mine", options=IMAGENET)
    assert not workspace.EXPORTS.exists()


@pytest.mark.parametrize("layout, shape", [("NCHW", r"\[1, 5, 16, 24\]"), ("NHWC", r"\[1, 16, 24, 5\]")])
@pytest.mark.usefixtures("_here")
def test_a_network_of_more_bands_is_refused_by_their_number(layout: str, shape: str) -> None:
    """Photographs have three channels, or one: no image here could be given to it."""
    path = Foreign(channels=5, layout=layout).save(Path("theirs.onnx"))
    with pytest.raises(InvalidFileError, match=f"{shape}: not one image of 1 or 3 channels") as refused:
        segdeploy.adopt(path, name="mine", options=IMAGENET)
    assert "more bands are not read here" in refused.value.remedy


@pytest.mark.parametrize("content", [b"", b"no protobuf at all", Foreign().model().SerializeToString()[:200]])
@pytest.mark.usefixtures("_here")
def test_a_file_that_is_empty_foreign_or_cut_off_is_refused(content: bytes) -> None:
    Path("theirs.onnx").write_bytes(content)
    with pytest.raises(InvalidFileError, match="ONNX file"):
        segdeploy.adopt("theirs.onnx", name="mine", options=IMAGENET)


@pytest.mark.usefixtures("_here")
def test_weights_outside_the_folder_are_refused() -> None:
    model = Foreign().model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    Path("theirs.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidFileError, match="does not lie beside it"):
        segdeploy.adopt("theirs.onnx", name="mine", options=IMAGENET)


@pytest.mark.usefixtures("_here")
def test_weights_beside_the_file_count_as_the_file() -> None:
    """Of external data the ONNX file holds the name alone: other weights in it are another original."""
    model, data = Foreign().model(), noise(Path("data"))
    tensor = model.graph.initializer[0]
    weights = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="theirs.bin")
    Path("theirs.bin").write_bytes(weights)
    Path("theirs.onnx").write_bytes(model.SerializeToString())
    segdeploy.adopt("theirs.onnx", name="mine", options=dataclasses.replace(IMAGENET, data=data))
    assert workspace.current_graph("mine", Precision.FP32, None) is not None
    Path("theirs.bin").write_bytes(weights[::-1])
    assert workspace.current_graph("mine", Precision.FP32, None) is None
    with pytest.raises(InvalidFileError, match="is no longer the file"):
        segdeploy.parity("export/mine.fp32.onnx", engine="ort:fp32", data=data)


@pytest.mark.parametrize(
    "foreign, options, remedy",
    [
        (Foreign(), AdoptOptions(), "--preset"),
        (Foreign(dtype="uint8"), IMAGENET, "Leave --preset"),
        (Foreign(sides=(None, None)), IMAGENET, "--size"),
        (Foreign(), dataclasses.replace(IMAGENET, size=(8, 8)), "--size"),
        (Foreign(kind="class map"), IMAGENET, "--classes"),
        (Foreign(), dataclasses.replace(IMAGENET, output_name="none"), "Choose"),
        (Foreign(), dataclasses.replace(IMAGENET, classes=7), "--classes"),
    ],
)
@pytest.mark.usefixtures("_here")
def test_what_the_file_does_not_say_is_asked_for(foreign: Foreign, options: AdoptOptions, remedy: str) -> None:
    """It never guesses in silence: exit code 2, and the option's name."""
    path = foreign.save(Path("theirs.onnx"))
    with pytest.raises(InvalidRequestError) as refused:
        segdeploy.adopt(path, name="mine", options=options)
    assert remedy in refused.value.remedy


@pytest.mark.parametrize("name", ["unet", "a.b", "../x"])
@pytest.mark.usefixtures("_here")
def test_a_name_that_is_taken_or_none_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"name"):
        segdeploy.adopt(Foreign().save(Path("theirs.onnx")), name=name, options=IMAGENET)


# What others say, and what labelled images find


@pytest.mark.parametrize("switches", [{"do_rescale": True, "do_normalize": True}, {}])
@pytest.mark.usefixtures("_here")
def test_what_lies_beside_the_file_says_how_images_are_prepared(switches: dict[str, bool]) -> None:
    path = Foreign().save(Path("theirs.onnx"))
    about = {**switches, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    Path("preprocessor_config.json").write_text(json.dumps(about))
    found = segdeploy.adopt(path, name="mine")
    assert "preprocessor_config.json" in found.source
    assert found.graph.spec.mean == pytest.approx((0.5,) * 3)
    assert found.graph.spec.std == pytest.approx((0.25,) * 3)
    assert found.graph.precision is Precision.FP32


@pytest.mark.usefixtures("_here")
def test_labels_that_no_preprocessing_explains_decide_nothing() -> None:
    data = noise(Path("data"))
    (data / "masks").mkdir()
    (data / "classes.csv").write_text("a,0,0,0\nb,9,9,9\nc,99,99,99\n")
    for image in (data / "images").glob("*.png"):
        mask = np.random.default_rng(3).integers(0, 3, SIZE, np.uint8)
        Image.fromarray(mask).save(data / "masks" / image.name)
    with pytest.raises(UndecidedError, match="do not decide") as refused:
        segdeploy.adopt(Foreign().save(Path("theirs.onnx")), name="mine", options=AdoptOptions(data=data, force=True))
    assert refused.value.table is not None
    assert len(refused.value.table.scores) > 8


def test_grey_is_pillows() -> None:
    image = np.random.default_rng(4).integers(0, 256, (64, 64, 3), np.uint8)
    np.testing.assert_array_equal(
        reading.channels_of(image, "grey")[..., 0], np.asarray(Image.fromarray(image).convert("L"))
    )
