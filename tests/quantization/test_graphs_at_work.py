"""Graphs of low precision in every verb: who opens which, and when one is made anew."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import known, photograph
from quick_exports import HALF, LOOSE, SIGNED, UNSIGNED

import segdeploy
from segdeploy import artifact, engines, making, workspace
from segdeploy.artifact import Artifact
from segdeploy.errors import InvalidFileError, InvalidRequestError, SegdeployError
from segdeploy.low_precision import Budget
from segdeploy.making import ExportOptions
from segdeploy.precision import int8
from segdeploy.spec import Precision

INT8 = Precision.INT8

# Who opens what


@pytest.mark.usefixtures("converted")
@pytest.mark.parametrize(
    "path,engine,what",
    [
        (SIGNED, "ort:int8", "is in the signed form; ort takes unsigned"),
        (SIGNED, "ov:int8", "is in the signed form; ov takes unsigned"),
        (UNSIGNED, "fp32", "is an int8 graph; fp32 was asked for"),
        (UNSIGNED, "torch:fp32", "is an int8 graph; fp32 was asked for"),
        (HALF, "int8", "is an fp16 graph; int8 was asked for"),
    ],
)
def test_a_graph_of_another_form_or_precision_is_refused(path: Path, engine: str, what: str) -> None:
    with pytest.raises(InvalidFileError, match=what):
        segdeploy.open(str(path), engine=engine, device="cpu")


@pytest.mark.parametrize("engine", ["torch:int8", "torch:fp16"])
@pytest.mark.usefixtures("converted")
def test_the_reference_has_one_precision(engine: str) -> None:
    with pytest.raises(InvalidRequestError, match="in fp32"):
        segdeploy.open("unet", engine=engine, device="cpu")


@pytest.mark.usefixtures("converted")
@pytest.mark.parametrize("engine", ["ort:int8", "ov:int8", "ort:fp16", "ov:fp16"])
def test_every_verb_takes_an_engine_of_low_precision(photos: Path, labelled: Path, engine: str) -> None:
    name = engines.parse(engine)
    report = segdeploy.infer(photos, model="unet", engine=engine, device="cpu")
    assert (report.done, report.runtime, report.precision) == (8, name.runtime, name.precision)
    assert report.delivered is (INT8 if name.precision is INT8 else Precision.FP32)
    scored = segdeploy.evaluate("unet", data=labelled, engine=engine, device="cpu")
    assert (scored.runtime, scored.images) == (name.runtime, 3)
    proof = segdeploy.parity("unet", engine=engine, data=labelled, device="cpu")
    assert [stage.name for stage in proof.stages] == ["fp32 graph", "graph", "engine", "engine, batch 3"]
    assert proof.stages[-1].runtime == name.runtime
    assert known(proof.stages[-1].decided_agreement) > 0.95


@pytest.mark.usefixtures("converted")
def test_the_signed_form_can_be_proven_again_without_an_engine(labelled: Path) -> None:
    report = segdeploy.parity(SIGNED, engine="int8", data=labelled, device="cpu")
    assert report.stages[-1].agreement is None
    assert report.proven_to == "graph"
    assert artifact.read(SIGNED).certificate == report


def test_a_graph_whose_float_graph_is_gone_cannot_be_proven(converted: Path, labelled: Path) -> None:
    (converted / "export/unet.fp32.onnx").unlink()
    with pytest.raises(SegdeployError, match=r"unet\.fp32\.onnx"):
        segdeploy.parity(UNSIGNED, engine="int8", data=labelled, device="cpu")


# Graphs that are at hand


@pytest.fixture
def packaged_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """What `--engine int8` makes of the packaged U-Net at a small size, with six of its images and more to spare."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(int8, "BUDGET", Budget(min_agreement=LOOSE, max_drop=100.0))
    few = workspace.packaged_images()[:6]
    monkeypatch.setattr(workspace, "packaged_images", lambda: few)
    segdeploy.export("unet", options=ExportOptions(size=(64, 64)))
    return making.graph_for("unet", INT8, form="unsigned")


def test_a_graph_is_made_once_and_anew_when_the_float_graph_is_another(
    packaged_int8: Artifact,
) -> None:
    """`export --size` must not leave yesterday's int8 graph to answer for the new one."""
    written = packaged_int8.path.stat().st_mtime_ns
    assert making.graph_for("unet", INT8, form="unsigned").sha256 == packaged_int8.sha256
    segdeploy.export("unet", options=ExportOptions(size=(64, 64)))  # to the byte the same: nothing is stale
    assert making.graph_for("unet", INT8, form="unsigned").path.stat().st_mtime_ns == written
    segdeploy.export("unet", options=ExportOptions(size=(48, 64)))
    again = making.graph_for("unet", INT8, form="unsigned")
    assert (again.spec.height, again.spec.width) == (48, 64)
    with segdeploy.open("unet", engine="int8") as engine:
        assert engine.classify(photograph(48, 64)[None]).shape == (1, 48, 64)


def test_a_graph_without_its_manifest_is_unfinished_and_made_again(packaged_int8: Artifact) -> None:
    artifact.manifest_path(packaged_int8.path).unlink()
    again = making.graph_for("unet", INT8, form="unsigned")
    assert again.sha256 == packaged_int8.sha256
    assert artifact.read(again.path).certificate is not None


def test_where_own_weights_have_no_images_a_stale_graph_is_no_substitute(converted: Path) -> None:
    segdeploy.export("unet", options=ExportOptions(size=(48, 64)))
    shutil.rmtree(converted / "validation")
    with pytest.raises(InvalidRequestError, match="there are no images to calibrate"):
        segdeploy.open("unet", engine="int8")


@pytest.mark.usefixtures("converted")
@pytest.mark.parametrize(
    "edit,field",
    [
        (lambda origin: origin.pop("graph"), "graph"),
        (lambda origin: origin.update(graph={}), "graph.path"),
    ],
    ids=["no graph", "no path"],
)
def test_a_manifest_that_was_edited_is_refused(edit: Callable[[dict[str, Any]], object], field: str) -> None:
    edited(UNSIGNED, edit)
    with pytest.raises(InvalidFileError, match=f"origin: the field {field} is missing"):
        segdeploy.open("unet", engine="int8")


def test_a_graph_that_names_no_float_graph_is_out_of_date(converted: Path, labelled: Path) -> None:
    """Nobody knows whether it is of the network at hand: it is made again, or not used."""
    edited(converted / UNSIGNED, lambda origin: origin.update(graph=None))
    shutil.rmtree(converted / "validation")
    with pytest.raises(InvalidRequestError, match="there are no images to calibrate"):
        segdeploy.open("unet", engine="int8")
    with pytest.raises(InvalidFileError, match="names no graph"):
        segdeploy.parity(UNSIGNED, engine="int8", data=labelled, device="cpu")


def edited(graph: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change what the manifest says that a graph was made from."""
    manifest = artifact.manifest_path(graph)
    document = json.loads(manifest.read_bytes())
    edit(document["origin"])
    manifest.write_text(json.dumps(document))
