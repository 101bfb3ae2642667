"""Which file is meant, and whether it is still what its manifest says."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest

import segdeploy
from segdeploy import artifact, making, workspace
from segdeploy.benchmarking import BenchOptions
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.proof import kit
from segdeploy.spec import Precision
from segdeploy.timing.latency import Effort

if TYPE_CHECKING:
    from collections.abc import Callable


def test_without_a_model_the_newest_export_is_meant(packaged: Path) -> None:
    assert making.graph_for(None).spec.model == workspace.newest_export() == "unet"
    newer = artifact.read_manifest(packaged / "export" / "unet.fp32.onnx")
    other = packaged / "export" / "segnet.fp32.onnx"
    spec = dataclasses.replace(newer.spec, model="segnet")
    model = onnx.load(newer.path)
    model.metadata_props[0].value = spec.to_json()
    onnx.save(model, other)
    made = dataclasses.replace(newer, path=other, spec=spec, sha256=artifact.sha256(other), made_at=artifact.now())
    artifact.write_manifest(made)
    assert workspace.newest_export() == "segnet"
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
        workspace.current_graph("export/unet.fp32.onnx", Precision.INT8, "signed")
    assert refused.value.remedy == "Give --engine fp32."


@pytest.mark.usefixtures("packaged")
@pytest.mark.parametrize("name", ["checkpoints/unet.safetensors", "folder/unet"])
def test_a_checkpoint_in_the_place_of_a_model_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"is no graph: --model takes a name or a \.onnx file"):
        workspace.current_graph(name, Precision.FP32, None)


def test_a_graph_without_its_manifest_is_not_there_yet(packaged: Path) -> None:
    """Between the two files an export may have ended: the graph is made again."""
    assert workspace.current_graph("unet", Precision.FP32, None) is not None
    (packaged / "export" / "unet.fp32.onnx.json").unlink()
    assert workspace.current_graph("unet", Precision.FP32, None) is None


def test_a_manifest_that_names_no_checkpoint_proves_nothing(packaged: Path) -> None:
    graph = artifact.read(packaged / "export" / "unet.fp32.onnx")
    nameless = dataclasses.replace(graph, origin=dataclasses.replace(graph.origin, weights=None))
    artifact.write_manifest(nameless)
    kit.path_of(graph.path).unlink()
    with pytest.raises(InvalidFileError, match=r"unet\.fp32\.onnx\.json names no checkpoint"):
        segdeploy.parity("unet")
    assert not artifact.read(graph.path).has_random_weights
