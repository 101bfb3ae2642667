"""What is said of a file, and of the networks and weights that are at hand."""

import shutil
from pathlib import Path

import pytest

import segdeploy
from segdeploy import artifact, models, workspace
from segdeploy.checkpoints import checkpoint


def test_a_graph_is_inspected_with_its_origin_and_its_proof(packaged: Path) -> None:
    path = packaged / "export" / "unet.fp32.onnx"
    found = segdeploy.inspect(path)
    assert found.artifact == artifact.read(path)
    assert found.artifact.certificate is not None
    assert found.size_mb == pytest.approx(path.stat().st_size / 1e6)
    assert found.trust is not None
    assert (found.trust.admitted, found.trust.reason) == (True, "it is signed with this key")


def test_a_checkpoint_is_inspected_with_its_training() -> None:
    path = workspace.PACKAGED / "unet.safetensors"
    found = segdeploy.inspect(path)
    assert (found.artifact.kind, found.artifact.spec.model) == ("checkpoint", "unet")
    assert found.artifact.origin.training is not None
    assert found.artifact.origin.training.epoch == 30


def test_every_network_is_listed_with_the_weights_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What training left comes beside what comes with the package, each with its score."""
    monkeypatch.chdir(tmp_path)
    workspace.CHECKPOINTS.mkdir()
    shutil.copy(workspace.PACKAGED / "segnet.safetensors", workspace.CHECKPOINTS)
    listed = {each.name: each for each in segdeploy.list_models()}
    assert list(listed) == models.names()
    assert [weights.kind for weights in listed["segnet"].weights] == ["file", "packaged"]
    for name in models.names():
        weights = listed[name].weights[-1]
        training = checkpoint.read(weights.path).origin.training
        assert training is not None
        assert (weights.kind, weights.val_miou) == ("packaged", training.val_miou)
        assert listed[name].description
        assert listed[name].options == models.defaults(name)
