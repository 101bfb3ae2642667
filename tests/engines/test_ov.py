"""OpenVINO to full strength: fixed shapes, hints, requests in flight, what it compiled before."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Run, photograph, photographs

from segdeploy import artifact
from segdeploy.artifact import Artifact
from segdeploy.engines import RunOptions, ov

GRAPH = Path("export/unet.fp32.onnx")
TWO_ENGINES = """
import pathlib, signal, sys
from segdeploy import artifact
from segdeploy.engines import ov

graph = artifact.read(pathlib.Path(sys.argv[1]))
first, second = ov.open(graph, device="cpu"), ov.open(graph, device="cpu")
first.close()
del first
second.close()
del second
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("heard")
"""


@pytest.fixture
def graph(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """The small network; OpenVINO's cache is a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(workspace / "cache"))
    return artifact.read(GRAPH)


def batch(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.stack([photograph(64, 64, seed) for seed in range(count)])


def test_more_batch_sizes_than_are_compiled_by_themselves_run_all_the_same(graph: Artifact) -> None:
    with ov.open(graph, device="cpu") as engine:
        one_by_one = np.concatenate([engine.classify(image[None]) for image in batch(9)])
        for count in (2, 9, 3, 4, 5, 6, 7, 2, 9):
            np.testing.assert_array_equal(engine.classify(batch(count)), one_by_one[:count])
        assert len(engine._compiled) == ov.MOST_SIZES + 1  # noqa: SLF001 - the one that takes any size besides


@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_the_hint_decides_how_many_batches_run_at_once(graph: Artifact, hint: str) -> None:
    settings = ov._settings(RunOptions(hint=hint))  # type: ignore[arg-type] # noqa: SLF001 - what OpenVINO is told
    assert settings["PERFORMANCE_HINT"] == hint.upper()
    with ov.open(graph, device="cpu", options=RunOptions(hint=hint)) as engine:  # type: ignore[arg-type]
        assert engine.in_flight >= 2
        tickets = [engine.submit(batch(1)) for _ in range(engine.in_flight)]
        maps = [engine.collect(ticket) for ticket in tickets]
        assert all((class_map == maps[0]).all() for class_map in maps)


def test_what_the_graph_leaves_in_float_is_float32(graph: Artifact) -> None:
    """Some processors have bfloat16, and OpenVINO takes it unasked."""
    with ov.open(graph, device="cpu") as engine:
        hint = engine._compiled[1].get_property("INFERENCE_PRECISION_HINT")  # noqa: SLF001 - what OpenVINO took
    assert hint.get_type_name() == "f32"


def test_what_was_compiled_is_kept_in_the_users_cache(graph: Artifact, workspace: Path) -> None:
    ov.open(graph, device="cpu").close()
    kept = sorted((workspace / "cache/segdeploy/openvino").iterdir())
    assert [path.suffix for path in kept] == [".blob"]
    before = kept[0].stat().st_mtime_ns
    with ov.open(graph, device="cpu") as engine:
        assert engine._compiled[1].get_property("LOADED_FROM_CACHE")  # noqa: SLF001
    assert kept[0].stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", [b"", b"nonsense", None], ids=["empty", "nonsense", "half"])
def test_a_damaged_cache_is_compiled_again(graph: Artifact, workspace: Path, damage: bytes | None) -> None:
    with ov.open(graph, device="cpu") as engine:
        expected = engine.classify(batch(1))
    (kept,) = (workspace / "cache/segdeploy/openvino").iterdir()
    kept.write_bytes(kept.read_bytes()[: kept.stat().st_size // 2] if damage is None else damage)
    with ov.open(graph, device="cpu") as engine:
        np.testing.assert_array_equal(engine.classify(batch(1)), expected)


def test_without_a_folder_for_its_cache_it_runs_without(run: Run, workspace: Path) -> None:
    """A container may have no home, or one that cannot be written to."""
    photographs(workspace, "photos/a.png")
    (workspace / "file").write_text("no folder")
    done = run("infer", "photos", "--engine", "ov:fp32", "--json", XDG_CACHE_HOME=str(workspace / "file"))
    assert (done.code, done.json()["done"]) == (0, 1), done.err


def test_ctrl_c_is_heard_after_one_engine_made_room_for_another(graph: Artifact) -> None:
    """In a process of its own, which OpenVINO can end: each of its cores moves the stack that signals run on."""
    done = subprocess.run([sys.executable, "-c", TWO_ENGINES, graph.path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
