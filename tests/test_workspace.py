"""Which file is meant, and whether it is still what its manifest says."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest
from conftest import known

import segdeploy
from segdeploy import artifact, making
from segdeploy import workspace as places
from segdeploy.benchmarking import BenchOptions
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.making import ExportOptions
from segdeploy.proof import kit
from segdeploy.spec import Precision
from segdeploy.timing.latency import Effort

if TYPE_CHECKING:
    from collections.abc import Callable


def test_without_a_model_the_newest_export_is_meant(packaged: Path) -> None:
    assert making.graph_for(None).spec.model == places.newest_export() == "unet"
    newer = artifact.read_manifest(packaged / "export" / "unet.fp32.onnx")
    other = packaged / "export" / "segnet.fp32.onnx"
    spec = dataclasses.replace(newer.spec, model="segnet", name="segnet")
    model = onnx.load(newer.path)
    model.metadata_props[0].value = spec.to_json()
    onnx.save(model, other)
    made = dataclasses.replace(newer, path=other, spec=spec, sha256=artifact.sha256(other), made_at=artifact.now())
    artifact.write_manifest(made)
    assert places.newest_export() == "segnet"
    assert making.graph_for(None).path.name == "segnet.fp32.onnx"


def test_a_graph_that_was_changed_is_refused(packaged: Path) -> None:
    path = packaged / "export" / "unet.fp32.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(InvalidFileError, match="not the file its manifest describes"):
        segdeploy.open("unet")


@pytest.mark.parametrize("changed", ["spec", "origin", "certificate"])
def test_a_manifest_that_was_edited_is_refused(packaged: Path, changed: str) -> None:
    """Other colours, other classes or a proof that is none: text that people edit."""
    path = packaged / "export" / "unet.fp32.onnx.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    edits = {"spec": {**document["spec"], "height": 128}, "origin": {}, "certificate": {"stages": [3]}}
    path.write_text(json.dumps({**document, changed: edits[changed]}), encoding="utf-8")
    verbs: dict[str, Callable[[], object]] = {
        "spec": lambda: segdeploy.open("unet"),
        "origin": lambda: segdeploy.parity("unet"),
        "certificate": lambda: segdeploy.bench("unet", options=BenchOptions(effort=Effort(runs=1))),
    }
    with pytest.raises(InvalidFileError) as caught:
        verbs[changed]()
    if changed == "spec":
        assert "segdeploy export --model unet" in caught.value.remedy
    else:
        assert caught.value.what.startswith("export/unet.fp32.onnx.json: ")
        assert changed in caught.value.what


@pytest.mark.usefixtures("packaged")
def test_a_graph_of_another_precision_is_refused_with_the_engine_that_takes_it() -> None:
    with pytest.raises(InvalidFileError, match="is an fp32 graph; int8 was asked for") as refused:
        places.current_graph("export/unet.fp32.onnx", Precision.INT8, "signed")
    assert refused.value.remedy == "Give --engine fp32."


@pytest.mark.usefixtures("packaged")
@pytest.mark.parametrize("name", ["checkpoints/unet.safetensors", "folder/unet"])
def test_a_checkpoint_in_the_place_of_a_model_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"is no graph: --model takes a name or a \.onnx file"):
        places.current_graph(name, Precision.FP32, None)


def test_a_graph_without_its_manifest_is_not_there_yet(packaged: Path) -> None:
    """Between the two files an export may have ended: the graph is made again."""
    assert places.current_graph("unet", Precision.FP32, None) is not None
    (packaged / "export" / "unet.fp32.onnx.json").unlink()
    assert places.current_graph("unet", Precision.FP32, None) is None


def test_a_manifest_that_names_no_checkpoint_proves_nothing(packaged: Path) -> None:
    graph = artifact.read(packaged / "export" / "unet.fp32.onnx")
    weights = dataclasses.replace(known(graph.origin.weights), path=None)
    nameless = dataclasses.replace(graph, origin=dataclasses.replace(graph.origin, weights=weights))
    artifact.write_manifest(nameless)
    kit.path_of(graph.path).unlink()
    with pytest.raises(InvalidFileError, match=r"unet\.fp32\.onnx\.json names no checkpoint"):
        segdeploy.parity("unet")
    assert not artifact.read(graph.path).has_random_weights


@pytest.fixture
def street(workspace: Path) -> Path:
    """The small network, called `street` by the name of its checkpoint; no file is called after its model."""
    (workspace / "checkpoints" / "unet.safetensors").rename(workspace / "checkpoints" / "street.safetensors")
    shutil.rmtree(workspace / "export")
    return workspace


def test_files_are_called_by_the_networks_name(street: Path) -> None:
    """What a network is built as, and what it is called, are two things."""
    (graph,) = segdeploy.export("street")
    assert (graph.spec.name, graph.spec.model) == ("street", "unet")
    assert graph.certificate is not None
    assert graph.certificate.model == "street"
    written = sorted(path.name for path in (street / "export").iterdir())
    assert written == [f"street.fp32.{end}" for end in ("onnx", "onnx.json", "onnx.sig", "proof", "proof.sig")]
    assert places.newest_export() == "street"
    assert places.current_graph("street", Precision.FP32, None) == artifact.read(graph.path)
    with segdeploy.open("street", engine="ort:fp32") as engine:
        assert engine.spec.name == "street"
    assert segdeploy.parity("street").proves
    (street / "checkpoints" / "street.safetensors").write_bytes(b"trained again")
    assert places.is_stale(graph)


@pytest.mark.usefixtures("street")
def test_what_is_here_under_no_name_is_refused_with_the_names_that_are() -> None:
    with pytest.raises(InvalidRequestError, match="there is no model named 'steet'") as refused:
        segdeploy.export("steet")
    assert refused.value.remedy == "Choose one of deeplabv3, pspnet, segnet, street, unet."
    listed = {model.name: [weights.path for weights in model.weights] for model in segdeploy.list_models()}
    assert Path("checkpoints/street.safetensors") in listed["unet"]
    assert Path("checkpoints/street.safetensors") not in listed["segnet"]


@pytest.mark.usefixtures("street")
def test_given_weights_are_of_the_network_that_is_named() -> None:
    """By its model where that is one of the networks, else by what it is called."""
    given = ExportOptions(weights="checkpoints/street.safetensors")
    (graph,) = segdeploy.export("unet", options=given)
    assert (graph.path, graph.spec.name) == (Path("export/unet.fp32.onnx"), "unet")
    segdeploy.export("street")
    with pytest.raises(InvalidFileError, match="holds a unet, not a segnet"):
        segdeploy.export("segnet", options=given)
    with pytest.raises(InvalidFileError, match="holds a unet, not a street"):
        segdeploy.export("street", options=ExportOptions(weights=places.PACKAGED / "unet.safetensors"))


def test_a_name_that_files_of_another_network_have_is_refused(street: Path) -> None:
    """`segnet` is a network: a U-Net under that name would be served for it."""
    (street / "checkpoints" / "street.safetensors").rename(street / "checkpoints" / "segnet.safetensors")
    with pytest.raises(InvalidFileError, match="holds a unet, not a segnet"):
        segdeploy.export("segnet")
