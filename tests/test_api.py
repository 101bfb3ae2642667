"""What each verb gives: facts that are read by attribute, and that any program can take as JSON."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import segdeploy
from segdeploy import ExportOptions, artifact, typed_json, workspace
from segdeploy.benchmarking import BenchOptions
from segdeploy.errors import InvalidFileError
from segdeploy.timing.latency import Effort

EXAMPLES = Path(__file__).parents[1] / "examples" / "nuclei"
GRAPH = Path("export/unet.fp32.onnx")


def test_bench_says_the_accuracy_of_the_very_file_it_times(packaged: Path) -> None:
    for part in ("images", "masks"):
        Path("few", part).mkdir(parents=True)
        for file in sorted((EXAMPLES / part).iterdir())[:4]:
            shutil.copy(file, Path("few", part))
    options = BenchOptions(engines=["ort:fp32", "torch:fp32"], data=Path("few"), effort=Effort(runs=2), batches=[1, 2])
    found = segdeploy.bench("unet", options=options)
    assert [(row.runtime, row.level, row.batch) for row in found.rows] == [
        (runtime, level, batch)
        for batch in (1, 2)
        for runtime in ("ort", "torch")
        for level in ("host", "image_to_mask")
    ]
    sha256 = artifact.sha256(packaged / GRAPH)
    for row in found.rows:
        assert row.miou is not None
        assert row.miou > 0.8
        assert row.agreement is not None
        assert (row.sha256 == sha256) == (row.runtime == "ort")


@pytest.mark.usefixtures("packaged")
def test_bench_without_labels_says_why_there_is_no_miou() -> None:
    (row, _) = segdeploy.bench("unet", options=BenchOptions(effort=Effort(runs=1))).rows
    assert row.miou is None
    assert row.miou_reason is not None
    assert "--data" in row.miou_reason


@pytest.mark.usefixtures("workspace")
def test_what_a_verb_gives_is_json(labelled: Path) -> None:
    found = [
        segdeploy.parity("unet", data=labelled),
        segdeploy.evaluate("unet", data=labelled, engine="ort:fp32"),
        segdeploy.list_models(),
        segdeploy.doctor(),
        segdeploy.inspect(GRAPH),
        segdeploy.inspect(workspace.PACKAGED / "unet.safetensors"),
    ]
    for each in found:
        document = typed_json.to_builtins(each)
        assert json.loads(json.dumps(document, allow_nan=False)) == json.loads(typed_json.to_text(each))


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_may_be_given_as_a_path_or_as_text(kind: Callable[[Path], str | Path], labelled: Path) -> None:
    given = kind(GRAPH)
    assert segdeploy.inspect(given).artifact.path == GRAPH
    assert segdeploy.parity(given, engine="ort:fp32", data=kind(labelled)).images == 3
    assert segdeploy.evaluate(given, data=kind(labelled), engine="ort:fp32").images == 3
    with segdeploy.open(given, engine="ort:fp32") as engine:
        assert engine.segment(kind(labelled / "images" / "0.png")).shape == (60, 80)
    report = segdeploy.infer(kind(labelled / "images"), model=given, engine="ort:fp32", out=kind(Path("masks")))
    assert report.done == 6
    with pytest.raises(InvalidFileError, match="holds a unet, not a segnet"):
        segdeploy.export("segnet", options=ExportOptions(weights=kind(Path("checkpoints/unet.safetensors"))))
