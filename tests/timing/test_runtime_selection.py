"""An engine that is named by its precision alone: the best runtime here, chosen once, and the reason said."""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, photographs

import segdeploy
from segdeploy import artifact, engines
from segdeploy.artifact import Artifact
from segdeploy.errors import MissingRuntimeError
from segdeploy.progress import silent
from segdeploy.timing import runtime_selection
from segdeploy.timing.runtime_selection import Candidate, Selected

GRAPH = Path("export/unet.fp32.onnx")
RECORD = Path("export/unet.fp32.choice.json")
OBSTACLE = MissingRuntimeError("it is not here.", "Install it.")
Timed = Callable[[Mapping[str, Artifact], Any], dict[str, float]]


@pytest.fixture
def timings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """What the stopwatch says from now on, one entry for each time that it is asked; OpenVINO is the faster."""
    said: list[dict[str, float]] = []

    def timed(files: Mapping[str, Artifact], _progress: object) -> dict[str, float]:
        said.append({runtime: 2.0 if runtime == "ov" else 3.0 for runtime in files})
        return said[-1]

    monkeypatch.setattr(runtime_selection, "_timed", timed)
    return said


def on_this_cpu() -> Selected:
    found = runtime_selection.usable(runtime_selection.candidates("cpu"))
    assert runtime_selection.without_timing(found) is None
    graph = artifact.read(GRAPH)
    return runtime_selection.fastest({each.runtime: graph for each in found}, progress=silent)


def listed(**obstacles: bool) -> list[Candidate]:
    """Candidates as the machine would list them; True where something stands in the way."""
    places = {
        "trt": ("trt", "cuda"), "rtx": ("trt-rtx", "cuda"), "ort_cuda": ("ort", "cuda"),
        "ort": ("ort", "cpu"), "ov": ("ov", "cpu"),
    }  # fmt: skip
    return [Candidate(*place, OBSTACLE if obstacles.get(name, True) else None) for name, place in places.items()]


def test_every_engine_but_the_reference_is_a_candidate_wherever_it_runs() -> None:
    """A sixth engine takes its place because its file is there."""
    found = {(each.runtime, each.device) for each in runtime_selection.candidates()}
    modules = engines.modules().items()
    assert found == {(n, device) for n, m in modules if m.OPENS != "checkpoint" for device in m.DEVICES}


def test_plans_come_before_graphs_and_the_gpu_before_the_cpu() -> None:
    ranks = [
        (each.device != "cuda", engines.modules()[each.runtime].OPENS != "plan")
        for each in runtime_selection.candidates()
    ]
    assert ranks == sorted(ranks)
    assert runtime_selection.candidates()[0].runtime == "trt"


@pytest.mark.parametrize(
    "free,expected",
    [
        ({"trt", "rtx", "ort_cuda", "ov"}, ("trt", "cuda")),
        ({"rtx", "ort_cuda", "ort"}, ("trt-rtx", "cuda")),
        ({"ort_cuda", "ort", "ov"}, ("ort", "cuda")),
        ({"ov"}, ("ov", "cpu")),
    ],
)
def test_the_first_that_is_usable_is_taken_without_a_stopwatch(free: set[str], expected: tuple[str, str]) -> None:
    usable = runtime_selection.usable(listed(**dict.fromkeys(free, False)))
    selected = runtime_selection.without_timing(usable)
    assert selected is not None
    assert (selected.runtime, selected.device) == expected


def test_where_nothing_is_usable_every_obstacle_is_named() -> None:
    with pytest.raises(MissingRuntimeError) as refused:
        runtime_selection.usable(listed())
    for place in ("trt on cuda", "trt-rtx on cuda", "ort on cuda", "ort on cpu", "ov on cpu"):
        assert f"{place}: it is not here." in refused.value.what


@pytest.mark.usefixtures("workspace")
def test_several_on_the_cpu_are_timed_once(timings: list[dict[str, float]]) -> None:
    first, second = on_this_cpu(), on_this_cpu()
    assert first == second
    assert (first.runtime, len(timings)) == ("ov", 1)
    assert first.why == "2.00 ms an image, ort 3.00 ms; kept in export/unet.fp32.choice.json"


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize(
    "damage",
    [
        lambda document: {**document, "schema": 9},
        lambda document: {**document, "key": {**document["key"], "graphs": {}}},
        lambda document: {**document, "key": {**document["key"], "machine": {"processor": "another"}}},
        lambda document: {**document, "ms": {"tpu": 1.0}},
        lambda document: {**document, "ms": {"ort": "fast", "ov": None}},
        lambda _document: [],
    ],
    ids=["schema", "graph", "machine", "runtimes", "numbers", "shape"],
)
def test_a_record_of_something_else_is_measured_anew(
    timings: list[dict[str, float]], damage: Callable[[dict[str, Any]], object]
) -> None:
    on_this_cpu()
    RECORD.write_text(json.dumps(damage(json.loads(RECORD.read_text()))))
    on_this_cpu()
    RECORD.write_text("{")
    on_this_cpu()
    assert len(timings) == 3


@pytest.mark.usefixtures("workspace")
def test_another_graph_is_timed_anew(timings: list[dict[str, float]]) -> None:
    on_this_cpu()
    artifact.write_manifest(dataclasses.replace(artifact.read(GRAPH), made_at=artifact.now()))
    on_this_cpu()
    assert len(timings) == 1, "the same graph, whatever its manifest says"
    GRAPH.write_bytes(GRAPH.read_bytes() + b"\x08\x08")  # the IR version once more
    described = artifact.read_manifest(GRAPH)
    artifact.write_manifest(dataclasses.replace(described, sha256=artifact.sha256(GRAPH)))
    on_this_cpu()
    assert len(timings) == 2


@pytest.mark.usefixtures("timings")
def test_a_folder_that_cannot_be_written_to_keeps_nothing_and_says_so(workspace: Path) -> None:
    (workspace / RECORD).mkdir()
    assert "not kept: cannot write export/unet.fp32.choice.json" in on_this_cpu().why


@pytest.mark.usefixtures("workspace")
def test_the_stopwatch_runs_the_real_engines() -> None:
    assert on_this_cpu().runtime in {"ort", "ov"}
    assert set(json.loads(RECORD.read_text())["ms"]) == {"ort", "ov"}


@pytest.mark.usefixtures("timings", "workspace")
def test_what_was_selected_is_opened_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "segdeploy"), segdeploy.open("unet", engine="fp32") as engine:
        assert engine.runtime == "ov"
    assert caplog.messages == [f"fp32 runs in ov on cpu: {on_this_cpu().why}."]


def test_the_command_says_it_beside_its_result(run: Run, workspace: Path) -> None:
    """On stderr: `--json` stays one document."""
    photographs(workspace, "photos/a.jpg")
    done = run("infer", "photos", "--json")
    assert done.json()["runtime"] in {"ort", "ov"}
    assert done.err.startswith(f"fp32 runs in {done.json()['runtime']} on cpu: ")
    assert done.err.count("\n") == 1
