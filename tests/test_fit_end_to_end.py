"""A fit goes from the option into the graph, its proof, its kit and every mask; another one is said."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from conftest import SPEC, Run, known, photograph, photographs
from numpy.typing import NDArray
from PIL import Image

import segdeploy
from segdeploy import NullEngine, artifact, claims, fitting, images, proving
from segdeploy.checkpoints import checkpoint
from segdeploy.data.dataset import Picture
from segdeploy.engines import EngineFile
from segdeploy.making import ExportOptions
from segdeploy.progress import silent
from segdeploy.proof import accuracy, stages
from segdeploy.proof.samples import FileSamples
from segdeploy.proof.stages import StageRun
from segdeploy.spec import Precision


def exported(fit: Any, data: Path) -> artifact.Artifact:  # noqa: ANN401 - a fit
    (graph,) = segdeploy.export("unet", options=ExportOptions(fit=fit, data=data))
    return graph


@pytest.mark.parametrize("fit", ["letterbox", "tile"])
def test_the_graph_carries_its_fit_and_is_proven_and_drawn_with_it(workspace: Path, labelled: Path, fit: Any) -> None:  # noqa: ANN401
    photographs(workspace, "photos/a.png")
    graph = exported(fit, labelled)
    assert graph.spec == fitting.with_fit(SPEC, fit)
    assert known(graph.certificate).passed
    segdeploy.infer("photos")
    with segdeploy.open("unet") as engine:
        drawn = engine.segment("photos/a.png")
        np.testing.assert_array_equal(images.read_mask(Path("masks/a.png")), drawn)
        photo = images.read("photos/a.png")
        assert fitting.plan(engine.spec, *photo.shape[:2]).tiles == (1 if fit == "letterbox" else 2)
        parts = fitting.drawn(photo, engine.spec, engine.classify)
        np.testing.assert_array_equal(images.to_photo_size(parts, height=len(photo), width=photo.shape[1]), drawn)


@pytest.mark.parametrize("fit", ["letterbox", "tile"])
@pytest.mark.usefixtures("workspace")
def test_low_precision_and_the_kit_follow_the_fit(labelled: Path, fit: Any) -> None:  # noqa: ANN401
    exported(fit, labelled)
    (graph,) = segdeploy.export("unet", precision="fp16")
    assert graph.spec.fit == fit
    file = EngineFile(graph, "ort", Precision.FP16, "cpu")
    kit = claims.kit_of(graph)
    assert kit is not None
    assert {str(sample.inside) for sample in kit} == {
        str(sample.inside) for sample in FileSamples(pictures(labelled), graph.spec)
    }
    with segdeploy.engines.open_engine(graph, runtime="ort", device="cpu") as engine:
        assert proving.by_kit(file.file, kit, engine, progress=silent).passed


def pictures(data: Path) -> list[Picture]:
    names = (data / "val.txt").read_text().split()
    return [Picture(data / "images" / name, data / "masks" / name) for name in names]


def test_another_fit_than_the_networks_own_is_said(workspace: Path, labelled: Path, run: Run) -> None:
    photographs(workspace, "photos/a.png")
    done = run("infer", "photos", "--engine", "ort:fp32", "--fit", "tile", "--json")
    assert (done.json()["fit"], done.json()["own_fit"]) == ("tile", "stretch")
    again = run("infer", "photos", "--engine", "ort:fp32", "--fit", "tile", "--overlap", "4")
    assert "1 done" in again.out, "a tile of another overlap draws other masks"
    assert "Fit: tile, as asked; this network is made and proven for stretch." in again.out
    assert "Fit:" not in run("infer", "photos", "--engine", "ort:fp32").out
    scores = run("eval", "--engine", "ort:fp32", "--data", str(labelled), "--fit", "letterbox")
    assert "Fit: letterbox, as asked" in scores.out
    refused = run("infer", "photos", "--engine", "ort:fp32", "--fit", "tile", "--decode", "scaled")
    assert refused.code == 2
    assert "--decode scaled leaves pixels out" in refused.err
    refused = run("infer", "photos", "--engine", "ort:fp32", "--fit", "tile", "--overlap", "32")
    assert (refused.code, "leaves nothing of a tile of 64" in refused.err) == (2, True)


@pytest.mark.usefixtures("workspace")
def test_scaled_decoding_is_scored_as_infer_draws_it(labelled: Path, run: Run) -> None:
    """On large JPEGs: the score is that of the masks that infer writes, whichever decoding it has."""
    for path in (labelled / "images").iterdir():
        with Image.open(path) as photo:
            large = photo.convert("RGB").resize((2000, 1600), Image.Resampling.BICUBIC)
        large.save(path.with_suffix(".jpg"), quality=80)
        path.unlink()
        with Image.open(labelled / "masks" / path.name) as mask:
            larger = mask.resize(large.size, Image.Resampling.NEAREST)
        larger.save(labelled / "masks" / path.name)
    (labelled / "val.txt").write_text("0.jpg\n2.jpg\n4.jpg\n")
    scores = {}
    for decode in fitting.DECODINGS:
        found = segdeploy.evaluate("unet", data=labelled, engine="ort:fp32", decode=decode)
        how = segdeploy.FolderOptions(decode=decode)
        segdeploy.infer(labelled / "images", out=decode, engine="ort:fp32", folder=how)
        counts = np.zeros((2, 2), np.int64)
        for index in (0, 2, 4):
            truth = images.read_mask(labelled / "masks" / f"{index}.png")
            counts += accuracy.against(truth, images.read_mask(Path(decode, f"{index}.png")), SPEC)
        assert found.decode == decode
        assert found.miou == pytest.approx(accuracy.scores(counts, SPEC).miou)
        scores[decode] = found.miou
    assert scores["exact"] != scores["scaled"], "or nothing was decoded otherwise"
    done = run("eval", "--engine", "ort:fp32", "--data", str(labelled), "--decode", "scaled")
    assert "With --decode scaled" in done.out
    refused = run("eval", "--engine", "ort:fp32", "--data", str(labelled), "--decode", "scaled", "--fit", "tile")
    assert refused.code == 2


def test_training_validates_with_the_fit_that_the_checkpoint_says(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    from segdeploy.training.options import Augmentation, TrainOptions

    size = (32, 32)
    for fit in ("letterbox", "tile"):
        how = TrainOptions(Augmentation(crop=size), epochs=1, batch=2, fit=fit)
        variant = {"multiplier": 0.125}
        best = segdeploy.train("unet", data=labelled, size=size, variant=variant, name=f"{fit}ed", options=how)
        assert checkpoint.read(best).spec.fit == fit
        scores = segdeploy.evaluate(f"{fit}ed", data=labelled, engine="torch:fp32")
        assert (scores.fit, scores.own_fit) == (fit, fit)
        line = json.loads(Path(f"checkpoints/{fit}ed.log.jsonl").read_text().splitlines()[0])
        assert scores.miou == pytest.approx(line["val_miou"])


class Faulty(NullEngine):
    """Wrong in a part of its class maps."""

    def __init__(self, spec: Any, wrong: tuple[slice, slice]) -> None:  # noqa: ANN401 - a Spec
        super().__init__(spec)
        self.wrong = wrong

    def _submit(self, batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
        class_maps = super()._submit(batch).copy()
        class_maps[:, *self.wrong] ^= 1
        return class_maps


class Right:
    """What a NullEngine draws, without near-ties."""

    kind: Final = "PyTorch"

    def __init__(self, spec: Any) -> None:  # noqa: ANN401 - a Spec
        self.spec = spec

    def class_map(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        with NullEngine(self.spec) as engine:
            drawn = engine.classify(image[None])[0]
        return drawn, np.zeros(drawn.shape, bool)

    def pool_ties(self, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
        return np.zeros(image.shape[:2], bool)


@pytest.mark.parametrize(
    "wrong,share",
    [((slice(0, 16), slice(None)), 0.0), ((slice(16, 17), slice(None)), 1 / 32), ((slice(48, 64), slice(None)), 0.0)],
)
@pytest.mark.usefixtures("workspace")
def test_what_surrounds_a_letterboxed_photo_dilutes_no_proof(
    small: Path, tmp_path: Path, wrong: tuple[slice, slice], share: float
) -> None:
    """A photo of 32 rows in an input of 64: an error in one row is one in 32, and what is around it counts nothing."""
    spec = dataclasses.replace(SPEC, fit="letterbox")
    Image.fromarray(photograph(64, 128)).save(tmp_path / "wide.png")
    about = dataclasses.replace(artifact.read(small / "export/unet.fp32.onnx"), spec=spec)
    samples = FileSamples([Picture(tmp_path / "wide.png", None)], spec)
    run = StageRun("engine", Faulty(spec, wrong))
    (stage,) = stages.certify(about, Right(spec), [run], samples, progress=silent).stages
    assert stage.pixels == 32 * 64
    assert 1 - known(stage.agreement) == pytest.approx(share)
    judge = stages.Judge(Right(spec), samples, done=lambda: None)
    assert 1 - judge.measure(Faulty(spec, wrong)).agreement == pytest.approx(share)


def test_a_labelled_tile_is_scored_against_its_own_truth(tmp_path: Path) -> None:
    """The truth of half the photo's size is brought to it first; every tile in turn is all right."""
    spec = fitting.with_fit(SPEC, "tile")
    photo = np.kron(np.random.default_rng(0).integers(0, 2, (50, 75)), np.ones((2, 2))).astype(np.uint8)
    Image.fromarray(np.stack([photo] * 3, axis=2)).save(tmp_path / "a.png")
    Image.fromarray(photo[::2, ::2]).save(tmp_path / "mask.png")
    samples = FileSamples([Picture(tmp_path / "a.png", tmp_path / "mask.png")] * 6, spec)
    with NullEngine(spec) as engine:
        for sample in samples:
            assert sample.truth is not None
            drawn = engine.classify(sample.image[None])[0][sample.inside]
            counts = accuracy.against(sample.truth, drawn, spec)
            assert counts.sum() == np.trace(counts) == sample.truth.size
