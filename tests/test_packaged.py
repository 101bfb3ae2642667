"""The weights that come with the package, on the images they were not trained on."""

import csv
import json
from pathlib import Path

import pytest

import segdeploy
from segdeploy import images, models, workspace
from segdeploy.checkpoints import checkpoint

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "nuclei"
LARGEST = 4_000_000  # bytes
LEAST_MIOU = 0.85


@pytest.mark.parametrize("name", models.names())
def test_every_network_has_small_weights_with_their_history(name: str) -> None:
    """The training command, the log and the score stand beside the weights."""
    path = workspace.PACKAGED / f"{name}.safetensors"
    assert path.stat().st_size <= LARGEST
    made = checkpoint.read(path)
    assert made.spec.classes == ("background", "nucleus")
    training = made.origin.training
    assert training is not None
    log = [json.loads(line) for line in path.with_suffix(".log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(log) == training.plan["epochs"]
    best = max(log, key=lambda record: record["val_miou"])
    assert (best["epoch"], best["val_miou"]) == (training.epoch, training.val_miou)
    assert best["val_miou"] >= LEAST_MIOU
    readme = (workspace.PACKAGED / "README.md").read_text(encoding="utf-8")
    assert f"{best['val_miou']:.4f}" in readme
    assert f"segdeploy train --model {name} " in readme


def test_the_examples_are_validation_images_with_masks_and_none_is_a_calibration_image() -> None:
    names = (EXAMPLES / "val.txt").read_text(encoding="utf-8").split()
    assert len(names) == len(set(names)) == 20
    assert all((EXAMPLES / folder / name).is_file() for name in names for folder in ("images", "masks"))
    assert len(workspace.packaged_images()) == 32
    examples = {images.read(EXAMPLES / "images" / name).tobytes() for name in names}
    assert not examples & {images.read(path).tobytes() for path in workspace.packaged_images()}


def test_calibration_and_examples_come_from_the_right_splits(segdeploy_data: Path) -> None:
    """What proves must not have trained."""
    val = set((segdeploy_data / "nuclei" / "val.txt").read_text(encoding="utf-8").split())
    train = (segdeploy_data / "nuclei" / "train.txt").read_text(encoding="utf-8").split()
    assert set((EXAMPLES / "val.txt").read_text(encoding="utf-8").split()) <= val
    stems = {name[:16] for name in train}
    assert all(path.stem in stems for path in workspace.packaged_images())


def test_the_front_door_segments_a_photograph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`segdeploy.open("unet")`, nothing else: the graph is made and proven on the way."""
    monkeypatch.chdir(tmp_path)
    name = (EXAMPLES / "val.txt").read_text(encoding="utf-8").split()[0]
    photo = images.read(EXAMPLES / "images" / name)
    with segdeploy.open("unet") as engine:
        class_map = engine.segment(photo)
    truth = images.read_mask(EXAMPLES / "masks" / name)
    assert (class_map == truth).mean() > 0.9
    manifest = json.loads((tmp_path / "export" / "unet.fp32.onnx.json").read_text(encoding="utf-8"))
    assert manifest["certificate"]["passed"]


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_graph_and_engine_draw_pytorchs_masks_on_every_validation_image(
    name: str, segdeploy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least 99.99 % of the pixels, the others near-ties, near-ties at most 0.1 % (SegNet: 0.002 % pool ties)."""
    monkeypatch.chdir(tmp_path)
    certificate = segdeploy.parity(name, data=segdeploy_data / "nuclei")
    assert certificate.images == 71
    assert certificate.passed, certificate
    for stage in certificate.stages:
        assert stage.agreement is not None
        assert stage.agreement >= 0.9999
        assert stage.unexplained == 0
        assert stage.near_ties is not None
        assert stage.near_ties <= 0.001
        assert stage.pool_ties is not None
        assert stage.pool_ties <= (0.00002 if name == "segnet" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_the_engine_reaches_the_score_that_training_noted(
    name: str, segdeploy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = segdeploy.evaluate(name, data=segdeploy_data / "nuclei")
    noted = checkpoint.read(workspace.PACKAGED / f"{name}.safetensors").origin.training
    assert noted is not None
    assert found.miou == pytest.approx(noted.val_miou, abs=1e-4)
    assert found.miou is not None
    assert found.miou >= LEAST_MIOU


def test_the_examples_name_the_classes_of_the_weights() -> None:
    rows = list(csv.reader((EXAMPLES / "classes.csv").read_text(encoding="utf-8").splitlines()))
    spec = checkpoint.read(workspace.PACKAGED / "unet.safetensors").spec
    assert [(row[0], tuple(map(int, row[1:]))) for row in rows] == list(zip(spec.classes, spec.colours, strict=True))
