"""From float32 to fp16 and int8 inside a budget: what is proven, written, refused and kept."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import TIGHT, known, photograph, photographs
from onnx import TensorProto, helper
from quick_exports import SIGNED, UNSIGNED, low_precision_of, quickly, stages_of

import segdeploy
from segdeploy import artifact, engines, models, signature, typed_json, workspace
from segdeploy.artifact import Artifact
from segdeploy.certificate import Certificate, Limits, Stage
from segdeploy.errors import GateFailedError, SegdeployError
from segdeploy.graphs.graph import Graph, layer_work
from segdeploy.making import ExportOptions
from segdeploy.origin import Origin
from segdeploy.precision import int8
from segdeploy.proof import limits, stages
from segdeploy.quantization import search
from segdeploy.spec import SPEC_KEY, Precision


def steps_of(graph: Artifact) -> Any:  # noqa: ANN401 - a JSON value
    """What the search measured, from the file beside the graph."""
    return json.loads(graph.path.with_suffix(".pareto.json").read_bytes())["steps"]


@pytest.mark.parametrize("form", int8.FORMS)
@pytest.mark.usefixtures("converted")
def test_a_budget_that_is_tight_leaves_some_layers_in_float_with_the_reason(form: str) -> None:
    graph = artifact.read(SIGNED if form == "signed" else UNSIGNED)
    assert 0 < low_precision_of(graph).low_share < 1
    assert set(low_precision_of(graph).in_float.values()) == {"gives accuracy back"}
    assert known(stages_of(graph)["graph"].decided_agreement) >= TIGHT
    assert known(graph.certificate).images == 4


@pytest.mark.parametrize("form", int8.FORMS)
@pytest.mark.usefixtures("converted")
def test_the_pareto_file_shows_the_steps(form: str) -> None:
    graph = artifact.read(SIGNED if form == "signed" else UNSIGNED)
    low, steps = low_precision_of(graph), steps_of(graph)
    assert steps[0]["in_float"] == []
    assert steps[0]["agreement"] < TIGHT, "or nothing would have been ranked"
    assert sum(len(step["in_float"]) == 1 for step in steps) == len(layer_work(Graph(onnx.load(graph.path))))
    (accepted,) = [step for step in steps if step["accepted"]]
    assert accepted["in_float"] == sorted(low.in_float)
    assert accepted["agreement"] >= TIGHT
    assert accepted["low_share"] == low.low_share
    assert all((step["ms"] is None) == (form == "signed") for step in steps)
    assert any(step["front"] for step in steps)


@pytest.mark.usefixtures("converted")
def test_the_unsigned_form_is_proven_to_the_engine_and_the_signed_to_the_graph() -> None:
    """No runtime on a CPU computes the signed form as TensorRT does, and the proof does not pretend one did."""
    signed, unsigned = artifact.read(SIGNED), artifact.read(UNSIGNED)
    for graph, proven_to in ((signed, "graph"), (unsigned, "engine")):
        several = ["engine, batch 3"] if proven_to == "engine" else []
        assert list(stages_of(graph)) == ["fp32 graph", "graph", "engine", *several]
        found = known(graph.certificate)
        assert (found.passed, found.proven_to) == (True, proven_to)
        assert (found.form, found.gated) == (graph.form, True)
    engine = stages_of(signed)["engine"]
    assert (engine.agreement, engine.passed) == (None, None)
    assert "signed form" in known(engine.reason)
    assert known(stages_of(unsigned)["engine"].agreement) >= TIGHT


@pytest.mark.usefixtures("workspace")
def test_with_labels_miou_is_part_of_the_budget(labelled: Path) -> None:
    """What decides calibrates where no folder was given for it."""
    options = ExportOptions(forms=["unsigned"], data=labelled)
    (graph,) = segdeploy.export("unet", precision="int8", options=options)
    assert set(known(graph.origin.calibration).images) == {"1.png", "3.png", "5.png"}
    assert known(graph.certificate).images == 3
    for stage in stages_of(graph).values():
        assert known(stage.miou_change) >= -0.5
        assert known(stage.decided_agreement) >= 0.98
    assert all(step["miou_drop"] is not None for step in steps_of(graph))


@pytest.mark.usefixtures("workspace")
def test_images_without_labels_decide_by_agreement_alone(tmp_path: Path) -> None:
    data = photographs(tmp_path / "unlabelled", *(f"images/{index}.png" for index in range(8)))
    graph = quickly(data=data)
    assert stages_of(graph)["graph"].miou_change is None
    assert len(known(graph.origin.calibration).images) == 4


@pytest.mark.usefixtures("workspace")
def test_random_weights_are_measured_and_give_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are for timing: an untrained network has nothing to lose."""
    monkeypatch.chdir(tmp_path)
    network = {"weights": "random", "size": (64, 64), "variant": {"multiplier": 0.125}}
    graph = quickly(min_agreement=1.0, max_drop=0.0, **network)
    low, found = low_precision_of(graph), known(graph.certificate)
    assert low.in_float == {}
    assert low.low_share == 1
    assert (found.weights, found.gated) == ("random", False)
    assert not found.passed
    assert not graph.path.with_suffix(".pareto.json").exists()
    with engines.open_engine(graph, runtime="ort", device="cpu") as engine:
        assert engine.classify(photograph(64, 64)[None]).shape == (1, 64, 64)


# Budgets that cannot be met


@pytest.fixture
def before(converted: Path) -> dict[str, bytes]:
    """The graphs and manifests that are there."""
    return {path.name: path.read_bytes() for path in (converted / "export").glob("*.onnx*")}


def assert_untouched(before: dict[str, bytes]) -> None:
    assert {path.name: path.read_bytes() for path in Path("export").glob("*.onnx*")} == before
    artifact.read(UNSIGNED)


def break_limits(monkeypatch: pytest.MonkeyPatch, *, of_float32: bool) -> None:
    """Let no stage of float32, or none of low precision, pass."""
    honest = limits.broken

    def broken(kept: Limits, found: Stage) -> str | None:
        return "a planted reason" if kept.are_of_float32 is of_float32 else honest(kept, found)

    monkeypatch.setattr(limits, "broken", broken)


def test_a_budget_that_no_proof_keeps_leaves_the_earlier_graph(
    before: dict[str, bytes], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step is tried, up to a graph that would be int8 by name alone: its layers are named."""
    break_limits(monkeypatch, of_float32=False)
    proofs: list[Artifact] = []
    monkeypatch.setattr(search, "stages", counted(search.stages, proofs))
    with pytest.raises(GateFailedError, match=r"less than half \(stage 'graph': a planted reason\)") as failed:
        quickly(calibrate=photos, min_agreement=0.97)
    assert "--min-agreement" in failed.value.remedy
    assert "segdeploy sensitivity" in failed.value.remedy
    assert "In float32 would stay " in failed.value.what
    assert low_precision_of(proofs[-1]).low_share >= 0.5
    assert len(proofs) > 1
    assert_untouched(before)


def counted(honest: Callable[..., Any], kept: list[Artifact]) -> Callable[..., Any]:
    def called(graph: Artifact, *others: object) -> object:
        kept.append(graph)
        return honest(graph, *others)

    return called


def test_where_the_float_graph_is_another_network_no_layer_is_to_blame(
    before: dict[str, bytes], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One proof, and no ranking of what cannot help."""
    break_limits(monkeypatch, of_float32=True)
    proofs: list[Artifact] = []
    monkeypatch.setattr(search, "stages", counted(search.stages, proofs))
    with pytest.raises(GateFailedError, match="stage 'fp32 graph': a planted reason"):
        quickly(calibrate=photos)
    assert len(proofs) == 1
    assert_untouched(before)


def test_where_no_choice_keeps_the_budget_there_is_nothing_to_prove(
    before: dict[str, bytes], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = stages.Judge.measure
    worse = functools.partial(dataclasses.replace, agreement=0.5)
    monkeypatch.setattr(stages.Judge, "measure", lambda judge, engine: worse(measured(judge, engine)))
    with pytest.raises(GateFailedError, match="no choice of float32 layers keeps to it"):
        quickly(calibrate=photos, method="minmax")  # another key: nothing is known of it
    assert_untouched(before)


def test_a_graph_that_is_low_precision_by_name_alone_leaves_the_earlier_one(
    before: dict[str, bytes], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hard budget ended with no int8 work at all, proven, over the good graph of before."""
    measured = stages.Judge.measure
    layers = layer_work(Graph(onnx.load("export/unet.fp32.onnx")))

    def measure(judge: stages.Judge, engine: Any) -> stages.Measured:  # noqa: ANN401 - an engine
        return dataclasses.replace(measured(judge, engine), agreement=0.5)

    monkeypatch.setattr(stages.Judge, "measure", measure)
    monkeypatch.setattr(
        "segdeploy.quantization.sensitivity.Search.steps",
        lambda *_: iter([frozenset(list(layers)[:-1]), frozenset(layers)]),
    )
    with pytest.raises(GateFailedError, match=r"less than half \(the images that decide ask for it\)") as failed:
        quickly(calibrate=photos, method="minmax")
    heaviest = max(list(layers)[:-1], key=lambda layer: layers[layer])
    assert f"In float32 would stay {heaviest}" in failed.value.what
    assert_untouched(before)


@pytest.mark.usefixtures("converted")
def test_how_often_the_proof_was_looked_at_is_said(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two candidates fails on the images that prove: what the second one shows was selected there."""
    honest, judged = limits.broken, list[Stage]()

    def broken(kept: Limits, found: Stage) -> str | None:
        if found.name == "graph" and not judged:
            judged.append(found)
            return "a planted reason"
        return honest(kept, found)

    monkeypatch.setattr(limits, "broken", broken)
    assert known(quickly(calibrate=photos, min_agreement=0.8).certificate).selected_among == 2
    assert known(quickly(calibrate=photos, min_agreement=0.8).certificate).selected_among == 1


def test_a_refuted_float_graph_is_never_quantized(converted: Path, photos: Path) -> None:
    fp32 = artifact.read(converted / "export/unet.fp32.onnx")
    refuted = Certificate(
        model="unet",
        precision=Precision.FP32,
        form=None,
        weights="file",
        gated=True,
        passed=False,
        first_failing_stage="graph",
        proven_to="graph",
        images=1,
        stages=(Stage(name="graph", reason="a planted reason", passed=False),),
        limits=limits.FLOAT32,
    )
    signature.publish_graph(dataclasses.replace(fp32, certificate=refuted))
    with pytest.raises(GateFailedError, match="a planted reason"):
        quickly(calibrate=photos)


def test_a_full_disk_keeps_the_earlier_graph(small_disk: Path, converted: Path) -> None:
    """Without its manifest it would count as unfinished."""
    made, origin = artifact.read(converted / UNSIGNED), Origin(command="test", version="0")
    graph = dataclasses.replace(made, path=small_disk / "u.onnx", origin=origin, low_precision=None, certificate=None)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    tiny = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [value]))
    tiny.metadata_props.add(key=SPEC_KEY, value=made.spec.to_json())
    written = search.write(graph, tiny, None)
    (small_disk / "others").write_bytes(b"x" * 4000)
    with pytest.raises(SegdeployError, match="No space left on device"):
        search.write(graph, tiny, made.certificate)
    assert artifact.read(graph.path).sha256 == written.sha256


# Sensitivity


@pytest.mark.usefixtures("converted")
def test_sensitivity_knows_what_the_export_measured(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranking that the export needed is read from its record: not one layer is measured again."""
    record = SIGNED.with_suffix(".pareto.json")
    before = record.read_bytes()
    monkeypatch.setattr(stages.Judge, "measure", lambda *_: pytest.fail("measured twice"))
    report = segdeploy.sensitivity("unet", options=ExportOptions(forms=["signed"], calibrate=photos))
    assert record.read_bytes() == before
    assert report.cost_unit == "multiply-adds"
    scores = [layer.score for layer in report.layers]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.usefixtures("converted")
def test_sensitivity_speaks_of_milliseconds_where_a_runtime_is_here(photos: Path) -> None:
    report = segdeploy.sensitivity("unet", options=ExportOptions(calibrate=photos))
    assert (report.form, report.cost_unit, report.images) == ("unsigned", "ms", 4)
    assert {layer.layer for layer in report.layers} == set(layer_work(Graph(onnx.load(UNSIGNED))))
    assert json.loads(typed_json.to_text(report))["schema"] == 2


# All four, with what the package brings


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_the_packaged_networks_keep_the_default_budget_in_every_form(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    some = workspace.packaged_images()[::4]
    monkeypatch.setattr(workspace, "packaged_images", lambda: some)
    for graph in segdeploy.export(name, precision="int8"):
        found = known(graph.certificate)
        assert found.passed
        assert found.images == 4
        assert low_precision_of(graph).low_share >= 0.95
        assert known(stages_of(graph)["graph"].decided_agreement) >= 0.98


@pytest.mark.slow
def test_a_trained_network_gives_back_what_a_tight_budget_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tight is a tenth closer to float32 than every layer in int8 comes, which each processor computes otherwise."""
    monkeypatch.chdir(tmp_path)
    (whole,) = segdeploy.export("unet", precision="int8", options=ExportOptions(forms=["unsigned"]))
    reached = known(stages_of(whole)["engine"].decided_agreement)
    asked = reached + (1 - reached) / 10
    options = ExportOptions(forms=["unsigned"], min_agreement=asked)
    (graph,) = segdeploy.export("unet", precision="int8", options=options)
    assert 0 < low_precision_of(graph).low_share < low_precision_of(whole).low_share
    assert known(stages_of(graph)["engine"].decided_agreement) >= asked > reached
    assert len(steps_of(graph)) > len(layer_work(Graph(onnx.load(graph.path))))
