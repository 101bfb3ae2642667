"""What a graph of low precision is made from, and what its manifest says of that."""

from pathlib import Path

import onnx
import pytest
from conftest import TIGHT, known, photographs
from quick_exports import HALF, SIGNED, UNSIGNED, low_precision_of, quickly, stages_of

import segdeploy
from segdeploy import artifact
from segdeploy.graphs.graph import Graph, layer_types, layer_work
from segdeploy.low_precision import Budget
from segdeploy.making import ExportOptions
from segdeploy.origin import Calibration, GraphOrigin
from segdeploy.precision import int8
from segdeploy.quantization import calibration
from segdeploy.quantization.images_in_parts import parts_of
from segdeploy.spec import Precision


@pytest.mark.parametrize("form", int8.FORMS)
@pytest.mark.usefixtures("converted")
def test_an_int8_manifest_says_how_it_was_made(photos: Path, form: str) -> None:
    graph = artifact.read(SIGNED if form == "signed" else UNSIGNED)
    origin, low, fp32 = graph.origin, low_precision_of(graph), artifact.read(Path("export/unet.fp32.onnx"))
    assert (graph.precision, graph.form) == (Precision.INT8, form)
    assert origin.graph == GraphOrigin(path="unet.fp32.onnx", sha256=fp32.sha256)
    assert origin.weights == fp32.origin.weights
    chosen = parts_of(at_hand=(), calibrate=photos, data=None).calibrate
    images = {file.name: artifact.sha256(file) for file in chosen}
    assert origin.calibration == Calibration(method="percentile", images=images, skipped={}, cache={})
    assert low.budget == Budget(min_agreement=TIGHT, max_drop=0.5)
    assert set(low.executed) == ({"ort", "ov"} if form == "unsigned" else set())


@pytest.mark.parametrize("path", [SIGNED, UNSIGNED, HALF], ids=["signed", "unsigned", "fp16"])
@pytest.mark.usefixtures("converted")
def test_what_the_manifest_calls_float_is_float_in_the_file(path: Path) -> None:
    """And nothing else is: of the work, the share that the graph asks for."""
    graph = artifact.read(path)
    model = Graph(onnx.load(path))
    types, convolutions = layer_types(model), layer_work(model)
    wide = {layer for layer, kind in types.items() if kind is not graph.precision}
    low = low_precision_of(graph)
    assert wide == set(low.in_float) & set(types)
    share = 1 - sum(convolutions[layer] for layer in wide) / sum(convolutions.values())
    assert low.low_share == pytest.approx(share)
    assert low.asked[graph.precision] == pytest.approx(share)
    assert sum(low.asked.values()) == pytest.approx(1)


@pytest.mark.usefixtures("converted")
def test_fp16_has_its_own_budget_and_clips_no_range() -> None:
    graph = artifact.read(HALF)
    low, calibration = low_precision_of(graph), known(graph.origin.calibration)
    assert (graph.form, low.budget) == (None, Budget(min_agreement=0.999, max_drop=0.05))
    assert (calibration.method, len(calibration.images)) == ("extremes", 4)
    assert known(stages_of(graph)["graph"].decided_agreement) >= 0.999
    assert {found.delivered for found in low.executed.values()} == {Precision.FP32}


@pytest.mark.usefixtures("converted")
def test_the_same_images_give_the_same_graph() -> None:
    """Also from a copy of them with other names, and without the record of the first search."""
    before = artifact.read(SIGNED)
    for record in Path("export").glob("*.pareto.json"):
        record.unlink()
    renamed = photographs(Path("other"), *(f"photo {index}.png" for index in range(8)))
    options = ExportOptions(forms=["signed"], calibrate=renamed)
    (graph,) = segdeploy.export("unet", precision="int8", options=options)
    assert graph.sha256 == before.sha256
    assert low_precision_of(graph).in_float == low_precision_of(before).in_float


@pytest.mark.parametrize("method", ["minmax", "mse", "entropy"])
@pytest.mark.usefixtures("workspace")
def test_the_calibration_that_was_asked_for_is_the_one_in_the_manifest(
    photos: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "BINS", 256)  # of 2048 bins, entropy takes minutes
    graph = quickly(calibrate=photos, method=method, min_agreement=0.8)
    assert known(graph.origin.calibration).method == method
