"""Every verb with a plan: real plans, signed and checked, on a GPU that is faked and draws what the graph draws."""

import shutil
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorrt_rtx
from conftest import photograph, photographs
from fake_gpu import FakeCuda, FakeNetwork

import segdeploy
from segdeploy import ExportOptions, ProofOptions, artifact, claims, proving, signature
from segdeploy.artifact import Artifact
from segdeploy.benchmarking import BenchOptions
from segdeploy.diagnosis import Place
from segdeploy.engines import BuildOptions, Engine, _cuda, ort
from segdeploy.errors import (
    GateFailedError,
    InvalidFileError,
    InvalidRequestError,
    MissingRuntimeError,
    SegdeployError,
)
from segdeploy.proof import kit
from segdeploy.timing import runtime_selection
from segdeploy.timing.latency import Effort

ENGINE = "trt-rtx:fp32"
PLAN = Path("engines/unet.trt-rtx.fp32.cc89.plan")
Draws = Callable[[np.ndarray], np.ndarray]


@pytest.fixture
def gpu(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Draws:
    """A GPU of compute capability 8.9; whatever plan it is given, it draws what the graph at hand draws."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(workspace / "config"))  # a key and a list that end with the test
    photographs(workspace, "photos/a.png", "photos/b.png", "photos/c.png")
    path = workspace / "export/unet.fp32.onnx"
    opened: dict[str, Engine] = {}

    def draws(batch: np.ndarray) -> np.ndarray:
        graph = artifact.read(path) if path.exists() else None
        if graph is not None and graph.sha256 not in opened:
            opened[graph.sha256] = ort.open(graph, device="cpu")
        return list(opened.values())[-1].classify(batch)

    draws(np.zeros((1, 64, 64, 3), np.uint8))
    on_gpu(monkeypatch, draws)
    return draws


def on_gpu(monkeypatch: pytest.MonkeyPatch, draws: Draws, capability: str = "8.9") -> None:
    made: list[FakeCuda] = []

    def connect(_name: str | None = None) -> FakeCuda:
        made.append(FakeCuda(capability=capability))
        return made[-1]

    def deserialized(_plan: bytes) -> FakeNetwork:
        network = FakeNetwork(made[-1])
        network.draws = draws
        return network

    runtime = types.SimpleNamespace(deserialize_cuda_engine=deserialized)
    monkeypatch.setattr(_cuda, "connect", connect)
    monkeypatch.setattr(tensorrt_rtx, "Runtime", lambda _logger: runtime)
    monkeypatch.setattr("segdeploy.engines._plan_compile._inspected", lambda *_: {})


def built() -> Artifact:
    return signature.read_manifest(PLAN)


@pytest.mark.usefixtures("gpu")
def test_a_plan_is_proven_where_it_is_built() -> None:
    plan = segdeploy.build("unet", engine=ENGINE)
    assert (plan.path, signature.facts_of(plan).target.gpu) == (PLAN, "Fake RTX 1")
    assert plan.certificate is not None
    assert plan.certificate.passed
    assert [(stage.name, stage.agreement) for stage in plan.certificate.stages] == [
        ("graph", 1.0),
        ("engine", 1.0),
        ("engine, batch 7", 1.0),
        ("engine, batch 8", 1.0),
    ]
    assert built() == plan, "the proof is signed with the rest"


@pytest.mark.usefixtures("gpu")
def test_a_plan_that_draws_other_masks_fails_its_gate_and_serves_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu(monkeypatch, lambda batch: np.zeros(batch.shape[:3], np.uint8))
    with pytest.raises(GateFailedError, match="from the stage 'engine' on"):
        segdeploy.build("unet", engine=ENGINE)
    assert built().certificate is not None
    with pytest.raises(GateFailedError):
        segdeploy.infer("photos", engine=ENGINE)


def test_a_plan_is_bisected_by_its_graph(gpu: Draws, labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that gave its layers away would be another plan: where its graph is right, the plan is at fault."""
    segdeploy.build("unet", engine=ENGINE)
    on_gpu(monkeypatch, lambda batch: 1 - gpu(batch))
    certificate = segdeploy.parity(engine=ENGINE, data=labelled, options=ProofOptions(bisect=True))
    assert (certificate.passed, certificate.first_failing_stage) == (False, "engine")
    found = certificate.departure
    assert found is not None
    assert (found.stage, found.kind, found.layers_compared) == ("engine", "none found", 23)
    assert "what the stage runs is not its graph" in found.text
    assert "A plan cannot be looked into without building another" in found.text


def test_every_verb_takes_a_plan(gpu: Draws, labelled: Path) -> None:
    report = segdeploy.infer("photos", engine=ENGINE)
    assert (report.done, report.device, report.file) == (3, "cuda", PLAN)
    assert segdeploy.evaluate(data=labelled, engine=ENGINE).runtime == "trt-rtx"
    assert segdeploy.parity(engine=ENGINE, data=labelled).passed
    timed = BenchOptions(engines=[ENGINE, "ort:fp32"], effort=Effort(runs=2), data=labelled)
    rows = segdeploy.bench(options=timed).rows
    assert [(row.runtime, row.level) for row in rows] == [
        *(("trt-rtx", level) for level in ("device", "host", "image_to_mask")),
        *(("ort", level) for level in ("host", "image_to_mask")),
    ]
    assert rows[0].agreement == 1.0
    assert rows[0].sha256 == built().sha256
    with segdeploy.open(str(PLAN), engine="fp32") as engine:
        assert engine.runtime == "trt-rtx"
        batch = np.stack([photograph(64, 64, seed) for seed in range(3)])
        np.testing.assert_array_equal(engine.classify(batch), gpu(batch))


@pytest.mark.usefixtures("gpu")
def test_a_precision_alone_takes_the_plan_and_builds_it() -> None:
    with segdeploy.open(engine="fp32") as engine:
        assert (engine.runtime, engine.device) == ("trt-rtx", "cuda")
    assert next(each.runtime for each in runtime_selection.candidates() if each.obstacle is None) == "trt-rtx"
    assert segdeploy.doctor().order[1] == Place(runtime="trt-rtx", device="cuda", usable=True, reason=None)


@pytest.mark.usefixtures("gpu")
def test_a_plan_is_built_once_and_again_where_its_graph_is_another() -> None:
    """With the options that it was built with."""
    segdeploy.build("unet", engine=ENGINE, options=BuildOptions(max_batch=3, workspace_mb=256))
    first = PLAN.read_bytes()
    segdeploy.open("unet", engine=ENGINE).close()
    assert PLAN.read_bytes() == first
    segdeploy.export("unet", options=ExportOptions(size=(48, 64)))
    with segdeploy.open("unet", engine=ENGINE) as engine:
        assert (engine.spec.height, engine.spec.width) == (48, 64)
        with pytest.raises(InvalidRequestError, match="at most 3 images"):
            engine.submit(np.zeros((4, 48, 64, 3), np.uint8))
    assert signature.facts_of(built()).options.workspace_mb == 256


@pytest.mark.usefixtures("gpu")
def test_a_machine_that_only_runs_plans_has_no_graph_and_no_weights() -> None:
    segdeploy.build("unet", engine=ENGINE)
    shutil.rmtree("export")
    shutil.rmtree("checkpoints")
    assert segdeploy.infer("photos", model="unet", engine=ENGINE).done == 3


@pytest.mark.usefixtures("gpu")
def test_a_plan_made_for_others_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    segdeploy.build("unet", engine=ENGINE)
    on_gpu(monkeypatch, lambda batch: batch[..., 0], capability="12.0")
    with pytest.raises(InvalidFileError, match=r"was built for compute capability 8\.9; here it is 12\.0"):
        segdeploy.open(str(PLAN), engine=ENGINE)
    with pytest.raises(InvalidFileError, match="Give --engine trt-rtx:fp32"):
        segdeploy.open(str(PLAN), engine="trt-rtx:int8")


@pytest.mark.usefixtures("gpu")
def test_without_the_key_a_proof_is_kept_among_those_made_here(caplog: pytest.LogCaptureFixture) -> None:
    segdeploy.build("unet", engine=ENGINE)
    signature.trust(artifact.sha256(artifact.manifest_path(PLAN)))
    key = signature.key_path()
    kept = key.read_bytes()
    key.unlink()
    try:
        before = artifact.manifest_path(PLAN).read_bytes()
        assert segdeploy.parity("unet", engine=ENGINE).passed
        assert artifact.manifest_path(PLAN).read_bytes() == before
        assert len(list(claims.counting(built()))) == 2, "the builder's and the one of this machine"
        assert "the proof is kept here alone" in caplog.text
    finally:
        key.write_bytes(kept)


@pytest.mark.usefixtures("gpu")
def test_a_proof_needs_the_graph_that_the_plan_was_built_from() -> None:
    segdeploy.build("unet", engine=ENGINE)
    segdeploy.export("unet", options=ExportOptions(size=(48, 64)))
    with pytest.raises(InvalidFileError, match="no longer the graph"):
        segdeploy.parity(str(PLAN), engine=ENGINE)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("missing", ["torch", "weights"])
def test_what_a_proof_needs_and_is_not_there_is_said_in_its_place(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine with the GPU is not always the one that trained: a proof kit is enough, once it is trusted."""

    def absent() -> None:
        raise MissingRuntimeError("PyTorch is not installed.", "Install it.")

    if missing == "weights":
        shutil.rmtree("checkpoints")
    else:
        monkeypatch.setattr("segdeploy.with_torch.torch_reference", absent)
        proving._kept_reference.cache_clear()  # noqa: SLF001 - what the export of the fixture drew
    with pytest.raises(SegdeployError, match=r"PyTorch is not installed|there is no checkpoint"):
        segdeploy.build("unet", engine=ENGINE)
    assert not PLAN.exists()
    signature.trust(artifact.sha256(kit.path_of(Path("export/unet.fp32.onnx"))))
    plan = segdeploy.build("unet", engine=ENGINE)
    assert plan.certificate is not None
    assert (plan.certificate.proves, plan.certificate.reference) == (True, "proof kit")
    assert built() == plan


def test_engines_that_compile_nothing_give_what_they_open(workspace: Path) -> None:
    assert segdeploy.build("unet", engine="ov:fp32").path == Path("export/unet.fp32.onnx")
    assert segdeploy.build("unet", engine="torch:fp32").kind == "checkpoint"
    assert not (workspace / "engines").exists()
