"""Which proofs count: signed here, trusted, or made here; and only in the arithmetic that they were made in."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import Run, known
from onnx import numpy_helper

import segdeploy
from segdeploy import admission, artifact, claims, engines, proving, signature, workspace
from segdeploy.certificate import Certificate, Stage
from segdeploy.engines import Arithmetic, EngineFile
from segdeploy.errors import GateFailedError, InvalidFileError
from segdeploy.making import ExportOptions
from segdeploy.proof import kit
from segdeploy.spec import Precision

GRAPH = Path("export/unet.fp32.onnx")


@pytest.fixture(autouse=True)
def _nothing_proven_before(workspace: Path) -> None:
    assert workspace.is_dir()
    shutil.rmtree(signature.proofs_folder(), ignore_errors=True)


def opened() -> EngineFile:
    return EngineFile(artifact.read(GRAPH), "ort", Precision.FP32, "cpu")


def covered(*batches: int) -> Certificate | None:
    return claims.covering(opened(), "cpu", batches)


def test_a_manifest_that_was_signed_here_counts() -> None:
    found = known(covered())
    assert found == artifact.read(GRAPH).certificate
    assert found.proves
    assert found.batches == frozenset({1, 3})
    stage = known(found.engine)
    here = engines.computes_with("ort", "cpu")
    assert (stage.hardware, stage.runtime_version) == (here.hardware, here.runtime_version)


def test_a_byte_of_a_manifest_makes_its_claims_none() -> None:
    beside = artifact.manifest_path(GRAPH)
    beside.write_bytes(beside.read_bytes() + b"\n")
    assert list(claims.counting(artifact.read(GRAPH))) == []
    assert not segdeploy.inspect(GRAPH).trust.admitted  # type: ignore[union-attr]
    signature.trust(artifact.sha256(beside))
    assert covered() is not None
    assert segdeploy.inspect(GRAPH).trust.admitted  # type: ignore[union-attr]
    signature.trust(artifact.sha256(beside), revoke=True)
    assert covered() is None


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key.unlink(),
        lambda key: key.write_bytes(b"another key, of another user here"),
    ],
    ids=["no key", "another key"],
)
def test_another_key_makes_the_claims_none(
    change: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(signature.key_path().parent, tmp_path / "config" / "segdeploy")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert covered() is not None
    change(signature.key_path())
    assert covered() is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610])
def test_a_key_that_others_can_use_is_refused(mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    monkeypatch.setenv(signature.KEY_VARIABLE, str(key))
    for right in (0o600, 0o400):
        key.chmod(right)
        assert signature.key() == key.read_bytes()
    key.chmod(mode)
    with pytest.raises(InvalidFileError, match=f"can be used by others: its mode is {mode:03o}") as refused:
        signature.key()
    assert refused.value.remedy == f"chmod 600 {key}"


@pytest.mark.parametrize("here", [Arithmetic("9.9", "avx2"), Arithmetic("1.0", "another instruction set")])
def test_a_proof_of_another_arithmetic_is_made_again(here: Arithmetic, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next machine saturates where this one does not; the next version rounds otherwise."""
    monkeypatch.setattr("segdeploy.engines.computes_with", lambda *_: here)
    assert covered() is None
    with segdeploy.open("unet", engine="ort:fp32"):
        found = known(covered())
    stage = known(found.engine)
    assert (stage.runtime_version, stage.hardware) == (here.runtime_version, here.hardware)
    assert found.reference == "proof kit"
    assert artifact.read(GRAPH).certificate != found, "the manifest stays as its signer wrote it"


def test_a_batch_size_that_was_not_judged_is_not_covered() -> None:
    assert covered(1, 3) is not None
    assert covered(2) is None


def refuted_by(name: str, **fields: Any) -> Certificate:  # noqa: ANN401 - the fields of Stage
    """The graph's certificate, failed at one stage."""
    found = known(artifact.read(GRAPH).certificate)
    stages = tuple(
        dataclasses.replace(stage, passed=False, reason="planted", **fields) if stage.name == name else stage
        for stage in found.stages
    )
    return dataclasses.replace(found, stages=stages, passed=False, first_failing_stage=name)


def test_a_refusal_of_the_graph_holds_in_every_runtime() -> None:
    claims.keep_here(opened(), "cpu", refuted_by("graph"))
    for runtime in ("ort", "ov"):
        with pytest.raises(GateFailedError, match="planted"):
            segdeploy.open("unet", engine=f"{runtime}:fp32")


def test_an_engine_that_failed_on_another_processor_says_nothing_of_this_one() -> None:
    signature.publish_graph(
        dataclasses.replace(artifact.read(GRAPH), certificate=refuted_by("engine", hardware="another"))
    )
    with segdeploy.open("unet", engine="ort:fp32") as engine:
        assert engine.runtime == "ort"


def test_a_refusal_on_more_images_stays() -> None:
    failed = dataclasses.replace(refuted_by("graph"), images=200)
    signature.publish_graph(dataclasses.replace(artifact.read(GRAPH), certificate=failed))
    found = segdeploy.parity(GRAPH, engine="ort:fp32")
    assert (found.passed, found.images) == (True, 4)
    assert artifact.read(GRAPH).certificate == failed
    with pytest.raises(GateFailedError):
        segdeploy.open("unet", engine="ort:fp32")


def test_a_certificate_of_an_earlier_version_counts_as_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names no arithmetic: `parity --all` makes it anew."""
    graph = artifact.read(GRAPH)
    manifest = json.loads(artifact.manifest(graph))
    for stage in manifest["certificate"]["stages"]:
        for name in ("batch", "hardware", "runtime_version", "not_finite"):
            del stage[name]
    for name in ("images_sha256", "reference", "selected_among", "inconclusive", "inconclusive_allowed"):
        del manifest["certificate"][name]
    manifest["certificate"]["schema"], manifest["schema"] = 3, 2
    del manifest["certificate_as_asked"]
    content = json.dumps(manifest).encode()
    artifact.manifest_path(GRAPH).write_bytes(content)
    signature.trust(artifact.sha256(artifact.manifest_path(GRAPH)))
    assert known(artifact.read(GRAPH).certificate).passed
    assert covered() is None
    monkeypatch.setattr(admission, "_proven_now", lambda *_: pytest.fail("asked"))
    with pytest.raises(pytest.fail.Exception, match="asked"):
        segdeploy.open("unet", engine="ort:fp32")


def test_a_file_that_changed_while_it_was_proven_is_not_signed() -> None:
    graph = artifact.read(GRAPH)
    before = artifact.manifest_path(GRAPH).read_bytes()
    GRAPH.write_bytes(GRAPH.read_bytes() + b"\0")
    with pytest.raises(InvalidFileError, match="was changed meanwhile"):
        proving.keep(graph, known(graph.certificate))
    assert artifact.manifest_path(GRAPH).read_bytes() == before


def test_kept_proofs_that_are_broken_are_said_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    claims.keep_here(opened(), "cpu", known(artifact.read(GRAPH).certificate))
    (kept,) = signature.proofs_folder().iterdir()
    kept.write_text(kept.read_text(encoding="utf-8")[:-10], encoding="utf-8")
    artifact.manifest_path(GRAPH).write_bytes(artifact.manifest_path(GRAPH).read_bytes() + b"\n")
    assert covered() is None
    assert str(kept) in caplog.text


def test_a_proof_that_was_kept_for_another_file_does_not_count() -> None:
    """Under the name of this one."""
    graph = artifact.read(GRAPH)
    other = dataclasses.replace(opened(), file=dataclasses.replace(graph, sha256="0" * 64))
    claims.keep_here(other, "cpu", known(graph.certificate))
    (kept,) = signature.proofs_folder().iterdir()
    kept.rename(kept.with_name(kept.name.replace("0" * 64, graph.sha256)))
    artifact.manifest_path(GRAPH).write_bytes(artifact.manifest_path(GRAPH).read_bytes() + b"\n")
    assert covered() is None


def test_images_that_training_validated_on_prove_only_while_they_are_the_same() -> None:
    graph = artifact.read(GRAPH)
    pictures = workspace.proof_images_of(graph)
    assert len(pictures) == 4
    assert all(picture.mask is not None for picture in pictures)
    pictures[0].image.write_bytes(pictures[1].image.read_bytes())
    known(pictures[2].mask).unlink()
    assert [each.image.name for each in workspace.proof_images_of(graph)] == ["1.png", "3.png"]


def test_stages_of_several_images_at_once_are_named_for_their_batch() -> None:
    stages = known(artifact.read(GRAPH).certificate).stages
    assert [(stage.name, stage.batch) for stage in stages] == [("graph", 1), ("engine", 1), ("engine, batch 3", 3)]
    assert isinstance(stages[0], Stage)


def test_images_that_may_not_leave_stay_out_of_any_file() -> None:
    """And the kit of an earlier export does not stay either."""
    assert kit.path_of(GRAPH).is_file()
    segdeploy.export("unet", options=ExportOptions(proof_kit=False))
    assert not kit.path_of(GRAPH).exists()
    assert covered() is not None


def test_parity_proves_every_file_of_the_folders_a_line_each(run: Run) -> None:
    """Exit code 4 where one of them draws other masks; the others are proven all the same."""
    segdeploy.export("unet", options=ExportOptions(output="logits"))
    shutil.rmtree(signature.proofs_folder(), ignore_errors=True)
    proven = run("parity", "--all")
    assert (proven.code, proven.out.splitlines()) == (
        0,
        [f"export/unet.fp32{kind}.onnx: proven: unet on 4 images, to the engine" for kind in (".logits", "")],
    )
    model = onnx.load(GRAPH)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("weight"):
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, GRAPH)
    artifact.write_manifest(dataclasses.replace(artifact.read_manifest(GRAPH), sha256=artifact.sha256(GRAPH)))
    refused = run("parity", "--all")
    lines = refused.out.splitlines()
    assert refused.code == 4
    assert lines[0] == "export/unet.fp32.logits.onnx: proven: unet on 4 images, to the engine"
    assert lines[1].startswith("export/unet.fp32.onnx: NOT the same from graph on")
    assert run("parity", "--all", "--model", "unet").code == 2


def test_a_kit_of_looser_limits_proves_no_graph_of_float32() -> None:
    """Both are signed here: what a precision may lose says its kit, under whatever name it lies."""
    content = kit.path_of(GRAPH).read_bytes()
    assert claims.kit_of(artifact.read(GRAPH)) is not None
    as_half = dataclasses.replace(artifact.read(GRAPH), precision=Precision.FP16)
    assert claims.kit_of(as_half) is None
    signature.publish_file(kit.path_of(GRAPH), content)
    assert claims.kit_of(artifact.read(GRAPH)) is not None
