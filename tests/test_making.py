"""What the verbs find, what they make when it is missing, and what they refuse."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from segdeploy import artifact, benchmarking, inspection, making, models
from segdeploy.checkpoints import checkpoint
from segdeploy.errors import GateFailedError, InvalidFileError, InvalidRequestError
from segdeploy.spec import Spec
from segdeploy.timing.latency import Effort

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLES = Path(__file__).parents[1] / "examples" / "nuclei"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the packaged U-Net was exported."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        making.export("unet")
    return folder


@pytest.fixture
def work(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder to stand in."""
    shutil.copytree(exported, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def train_something(*, made_at: str, seed: int = 0) -> Path:
    """What `segdeploy train` leaves: an untrained small U-Net will do."""
    torch.manual_seed(seed)
    network = models.build("unet", 2, multiplier=0.125)
    spec = Spec("unet", {"multiplier": 0.125}, ("a", "b"), ((0, 0, 0), (9, 9, 9)), 32, 32)
    path = making.CHECKPOINTS / "unet.safetensors"
    checkpoint.save(path, network.state_dict(), spec, made_by={"made_at": made_at, "val_miou": None})
    return path


def test_export_proves_the_graph_and_says_so_in_its_manifest(work: Path) -> None:
    graph = artifact.read(work / "export" / "unet.fp32.onnx")
    assert graph.parity is not None
    assert graph.parity["passed"]
    assert [stage["name"] for stage in graph.parity["stages"]] == ["graph", "engine"]
    assert graph.made_by["weights"]["kind"] == "packaged"
    assert str(work) not in (work / "export" / "unet.fp32.onnx.json").read_text(encoding="utf-8")


def test_without_a_model_the_newest_export_is_meant(work: Path) -> None:
    assert making.graph_for(None).spec.model == "unet"
    newer = artifact.read_manifest(work / "export" / "unet.fp32.onnx")
    other = work / "export" / "segnet.fp32.onnx"
    shutil.copy(newer.path, other)
    spec = dataclasses.replace(newer.spec, model="segnet")
    artifact.write_manifest(dataclasses.replace(newer, path=other, spec=spec, made_at=artifact.now()))
    assert making.graph_for(None).path.name == "segnet.fp32.onnx"


def test_a_graph_that_is_there_is_used_as_it_is(work: Path) -> None:
    before = (work / "export" / "unet.fp32.onnx").stat().st_mtime_ns
    assert making.graph_for("unet").spec.model == "unet"
    assert (work / "export" / "unet.fp32.onnx").stat().st_mtime_ns == before


def test_a_graph_older_than_what_training_left_is_made_again(work: Path) -> None:
    """`segdeploy train; segdeploy bench` must not time yesterday's network."""
    del work
    train_something(made_at="2020-01-01T00:00:00.000+00:00")
    assert making.graph_for("unet").made_by["weights"]["kind"] == "packaged"
    train_something(made_at=artifact.now())
    graph = making.graph_for("unet")
    assert graph.made_by["weights"]["kind"] == "file"
    assert (graph.spec.height, graph.spec.width) == (32, 32)


def test_a_graph_whose_checkpoint_changed_cannot_be_proven(work: Path) -> None:
    del work
    train_something(made_at="2020-01-01T00:00:00.000+00:00")
    making.export("unet")
    train_something(made_at="2020-01-01T00:00:00.000+00:00", seed=1)
    with pytest.raises(InvalidFileError, match="no longer the checkpoint"):
        making.parity("unet")


def test_a_graph_that_was_changed_is_refused(work: Path) -> None:
    path = work / "export" / "unet.fp32.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(InvalidFileError, match="not the file its manifest describes"):
        making.open("unet")


@pytest.mark.parametrize("changed", ["spec", "made_by", "parity"])
def test_a_manifest_that_was_edited_is_refused(work: Path, changed: str) -> None:
    """Other colours, other classes or a proof that is none: text that people edit."""
    path = work / "export" / "unet.fp32.onnx.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    edits = {"spec": {**document["spec"], "height": 128}, "made_by": {}, "parity": {"stages": [3]}}
    path.write_text(json.dumps({**document, changed: edits[changed]}), encoding="utf-8")
    verbs: dict[str, Callable[[], object]] = {
        "spec": lambda: making.open("unet"),
        "made_by": lambda: making.parity("unet"),
        "parity": lambda: benchmarking.run("unet", effort=Effort(runs=1)),
    }
    with pytest.raises(InvalidFileError) as caught:
        verbs[changed]()
    assert "segdeploy export --model unet" in caught.value.remedy


def test_an_export_that_is_another_network_ends_in_a_failed_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph stays, its failed proof in the manifest; `bench` shows it."""
    monkeypatch.chdir(tmp_path)
    from segdeploy.graphs import to_onnx

    honest = to_onnx.to_graph

    def of_bgr(network: Any, spec: Spec) -> Any:  # noqa: ANN401 - a planted fault
        swapped = copy.deepcopy(network)
        first = swapped.down[0][0].conv
        first.weight = torch.nn.Parameter(first.weight.flip(1))
        return honest(swapped, spec)

    monkeypatch.setattr(to_onnx, "to_graph", of_bgr)
    with pytest.raises(GateFailedError, match="'graph' on"):
        making.export("unet")
    manifest = artifact.read(tmp_path / "export" / "unet.fp32.onnx")
    assert manifest.parity is not None
    assert not manifest.parity["passed"]
    with pytest.raises(GateFailedError):
        making.infer([str(EXAMPLES / "images")], model="unet")
    assert not (tmp_path / "masks").exists()
    assert benchmarking.run("unet", engine_names=["ort:fp32"], effort=Effort(runs=1))["rows"][0]["agreement"] < 1


def test_another_size_is_exported_and_every_engine_takes_it(work: Path) -> None:
    del work
    graph = making.export("unet", size=(128, 160))
    assert (graph.spec.height, graph.spec.width) == (128, 160)
    for name in ("ort:fp32", "torch:fp32"):
        with making.open("unet", engine=name, device="cpu") as engine:
            assert engine.classify(np.zeros((1, 128, 160, 3), np.uint8)).shape == (1, 128, 160)


def test_a_graph_of_logits_stands_beside_and_is_proven_too(work: Path) -> None:
    graph = making.export("unet", output="logits")
    assert graph.path.name == "unet.fp32.logits.onnx"
    assert graph.parity is not None
    assert graph.parity["passed"]
    assert making.graph_for(None).path.name == "unet.fp32.onnx"
    assert work.is_dir()


def test_random_weights_are_measured_and_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are for timing a network that nobody trained yet; the same seed gives the same network."""
    monkeypatch.chdir(tmp_path)
    options = {"multiplier": 0.125}
    graph = making.export("unet", weights="random", options=options, size=(64, 96))
    assert graph.parity is not None
    assert graph.parity["weights"] == "random"
    assert not graph.parity["gated"]
    assert making.export("unet", weights="random", options=options, size=(64, 96)).sha256 == graph.sha256


def test_a_checkpoint_of_another_architecture_is_refused(work: Path) -> None:
    del work
    with pytest.raises(InvalidFileError, match="holds a segnet, not a unet"):
        making.export("unet", weights=str(making.PACKAGED / "segnet.safetensors"))


def test_options_are_for_networks_that_are_not_trained_yet(work: Path) -> None:
    del work
    with pytest.raises(InvalidRequestError, match="--option"):
        making.export("unet", options={"multiplier": 0.5})


def test_the_reference_has_one_precision(work: Path) -> None:
    del work
    with pytest.raises(InvalidRequestError, match="torch is the reference, in fp32"):
        making.open("unet", engine="torch:int8")


def test_bench_says_the_accuracy_of_the_very_file_it_times(work: Path) -> None:
    report = benchmarking.run(
        "unet", engine_names=["ort:fp32", "torch:fp32"], data=EXAMPLES, effort=Effort(runs=2), batches=[1, 2]
    )
    assert [(row["runtime"], row["level"], row["batch"]) for row in report["rows"]] == [
        (runtime, level, batch)
        for batch in (1, 2)
        for runtime in ("ort", "torch")
        for level in ("host", "image_to_mask")
    ]
    sha256 = artifact.sha256(work / "export" / "unet.fp32.onnx")
    for row in report["rows"]:
        assert row["miou"] > 0.8
        assert row["agreement"] is not None
        assert (row["sha256"] == sha256) == (row["runtime"] == "ort")


def test_bench_without_labels_says_why_there_is_no_miou(work: Path) -> None:
    del work
    (row, _) = benchmarking.run("unet", effort=Effort(runs=1))["rows"]
    assert row["miou"] is None
    assert "--data" in row["miou_reason"]


def test_parity_of_pytorch_itself_leaves_the_graphs_proof_alone(work: Path) -> None:
    manifest = work / "export" / "unet.fp32.onnx.json"
    before = manifest.read_bytes()
    report = making.parity("unet", engine="torch:fp32", data=EXAMPLES)
    assert [stage["name"] for stage in report["stages"]] == ["engine"]
    assert report["stages"][0]["agreement"] == 1.0
    assert manifest.read_bytes() == before


def test_every_report_is_json(work: Path) -> None:
    reports = [
        making.parity("unet"),
        making.evaluate("unet", data=EXAMPLES),
        inspection.list_models(),
        inspection.doctor(),
        inspection.inspect(work / "export" / "unet.fp32.onnx"),
        inspection.inspect(making.PACKAGED / "unet.safetensors"),
    ]
    for report in reports:
        assert json.loads(json.dumps(report))["schema"] in {1, 2}


def test_doctor_finds_two_packages_that_overwrite_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pip sees no conflict between onnxruntime and onnxruntime-gpu; the import is broken all the same."""
    from segdeploy import engines

    monkeypatch.setattr(engines, "installed", list)
    report = inspection.doctor()
    (check,) = [check for check in report["checks"] if check["name"] == "engine ort"]
    assert report["clash"]
    assert not check["usable"]
    assert "pip uninstall" in check["remedy"]
