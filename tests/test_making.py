"""What is made where it is missing, from what, and what is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from conftest import trained_origin

import segdeploy
from segdeploy import ExportOptions, artifact, making, workspace
from segdeploy.artifact import Artifact
from segdeploy.checkpoints import checkpoint
from segdeploy.errors import InvalidFileError, InvalidRequestError

PACKAGED = workspace.PACKAGED / "unet.safetensors"
EXAMPLES = Path(__file__).parents[1] / "examples" / "nuclei"


def train_something(*, made_at: str, moved: float = 0.01) -> Path:
    """What `segdeploy train` leaves: the packaged U-Net at a smaller size, its last bias moved."""
    tensors, packaged = checkpoint.tensors(PACKAGED), checkpoint.read(PACKAGED).spec
    tensors["classifier.bias"] += moved
    tensors["classifier.bias"][0] += moved
    path = workspace.CHECKPOINTS / "unet.safetensors"
    path.parent.mkdir(exist_ok=True)
    origin = trained_origin(Path("validation"), path)
    checkpoint.save(path, tensors, dataclasses.replace(packaged, height=64, width=64), origin=origin, made_at=made_at)
    return path


def weights_kind(graph: Artifact) -> str:
    assert graph.origin.weights is not None
    return graph.origin.weights.kind


def test_export_proves_the_graph_and_says_so_in_its_manifest(packaged: Path) -> None:
    graph = artifact.read(packaged / "export" / "unet.fp32.onnx")
    assert graph.certificate is not None
    assert graph.certificate.passed
    assert [stage.name for stage in graph.certificate.stages] == ["graph", "engine", "engine, batch 3"]
    assert weights_kind(graph) == "packaged"
    assert str(packaged) not in (packaged / "export" / "unet.fp32.onnx.json").read_text(encoding="utf-8")


def test_a_graph_that_is_there_is_used_as_it_is(packaged: Path) -> None:
    before = (packaged / "export" / "unet.fp32.onnx").stat().st_mtime_ns
    assert making.graph_for("unet").spec.model == "unet"
    assert (packaged / "export" / "unet.fp32.onnx").stat().st_mtime_ns == before


@pytest.mark.usefixtures("packaged")
@pytest.mark.parametrize("made_at", ["2020-01-01T00:00:00.000+00:00", "2120-01-01T00:00:00.000+00:00"])
def test_a_graph_of_other_weights_than_training_left_is_made_again(made_at: str) -> None:
    """`segdeploy train; segdeploy bench` must not time yesterday's network, whatever the clocks say."""
    train_something(made_at=made_at)
    graph = making.graph_for("unet")
    assert weights_kind(graph) == "file"
    assert (graph.spec.height, graph.spec.width) == (64, 64)


@pytest.mark.usefixtures("packaged")
def test_a_graph_whose_checkpoint_changed_cannot_be_proven() -> None:
    train_something(made_at="2020-01-01T00:00:00.000+00:00")
    segdeploy.export("unet")
    train_something(made_at="2020-01-01T00:00:00.000+00:00", moved=0.02)
    with pytest.raises(InvalidFileError, match="no longer the checkpoint"):
        segdeploy.parity("export/unet.fp32.onnx", data=EXAMPLES)


@pytest.mark.usefixtures("packaged")
def test_another_size_is_exported_and_every_engine_takes_it() -> None:
    (graph,) = segdeploy.export("unet", options=ExportOptions(size=(128, 160)))
    assert (graph.spec.height, graph.spec.width) == (128, 160)
    for name in ("ort:fp32", "torch:fp32"):
        with segdeploy.open("unet", engine=name, device="cpu") as engine:
            assert engine.classify(np.zeros((1, 128, 160, 3), np.uint8)).shape == (1, 128, 160)


def test_a_graph_of_logits_stands_beside_and_is_proven_too(packaged: Path) -> None:
    (graph,) = segdeploy.export("unet", options=ExportOptions(output="logits"))
    assert graph.path.name == "unet.fp32.logits.onnx"
    assert graph.certificate is not None
    assert graph.certificate.passed
    assert making.graph_for(None).path.name == "unet.fp32.onnx"
    assert packaged.is_dir()


def test_random_weights_are_measured_and_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are for timing a network that nobody trained yet; the same seed gives the same network."""
    monkeypatch.chdir(tmp_path)
    options = ExportOptions(weights="random", variant={"multiplier": 0.125}, size=(64, 96))
    (graph,) = segdeploy.export("unet", options=options)
    assert graph.certificate is not None
    assert graph.certificate.weights == "random"
    assert not graph.certificate.gated
    assert graph.has_random_weights
    (again,) = segdeploy.export("unet", options=options)
    assert again.sha256 == graph.sha256


@pytest.mark.usefixtures("packaged")
def test_a_checkpoint_of_another_architecture_is_refused() -> None:
    with pytest.raises(InvalidFileError, match="holds a segnet, not a unet"):
        segdeploy.export("unet", options=ExportOptions(weights=workspace.PACKAGED / "segnet.safetensors"))


@pytest.mark.usefixtures("packaged")
def test_options_are_for_networks_that_are_not_trained_yet() -> None:
    with pytest.raises(InvalidRequestError, match="--option"):
        segdeploy.export("unet", options=ExportOptions(variant={"multiplier": 0.5}))


@pytest.mark.usefixtures("packaged")
def test_the_reference_has_one_precision() -> None:
    with pytest.raises(InvalidRequestError, match="torch is the reference, in fp32"):
        segdeploy.open("unet", engine="torch:int8")


@pytest.mark.usefixtures("packaged")
def test_the_reference_takes_the_size_of_the_graph_at_hand() -> None:
    """Two engines of one network are compared at one size."""
    (graph,) = segdeploy.export("unet", options=ExportOptions(size=(128, 160)))
    found = making.find("unet", "torch:fp32", "cpu")
    assert (found.file.kind, found.file.path) == ("checkpoint", workspace.PACKAGED / "unet.safetensors")
    assert found.file.spec == dataclasses.replace(graph.spec, output="class_map")
