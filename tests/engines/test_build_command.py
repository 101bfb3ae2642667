"""`segdeploy build` on a machine without a GPU, as a user runs it."""

import dataclasses
import hashlib
import os
import pty
import select
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from conftest import COMMAND, SPEC, Run

from segdeploy import artifact, models, precision, signature, workspace
from segdeploy.certificate import Certificate, Limits, Stage
from segdeploy.checkpoints import checkpoint
from segdeploy.graphs import to_onnx as export
from segdeploy.graphs.graph import Graph, layer_types, layer_work
from segdeploy.origin import WeightsOrigin
from segdeploy.progress import silent
from segdeploy.quantization import images_in_parts, recipes, search
from segdeploy.spec import Precision

WEIGHTS = WeightsOrigin(kind="random", path="none", sha256="0" * 64)
CAPABILITIES = {**dict.fromkeys(Precision, ("8.6", "8.9", "12.0")), Precision.FP8: ("8.9", "12.0")}
PROVEN = Certificate(
    model="any",
    precision=Precision.FP32,
    form=None,
    weights="packaged",
    gated=True,
    passed=True,
    first_failing_stage=None,
    proven_to="graph",
    images=1,
    stages=(Stage(name="graph", passed=True),),
    limits=Limits(min_agreement=0.9, max_drop=0.5),
)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def export_packaged(name: str) -> None:
    """export/ as `segdeploy export` leaves it, without its search and its proof, which are other tests'."""
    weights = workspace.weights_for(name)
    network, spec = checkpoint.load(weights.checkpoint.path)
    path = artifact.graph_path(workspace.EXPORTS, name, Precision.FP32)
    fp32 = export.to_onnx(network, spec, path, weights=weights.origin_in(workspace.EXPORTS))
    signature.publish_graph(dataclasses.replace(fp32, certificate=PROVEN))
    parts = images_in_parts.parts_of(at_hand=workspace.pictures_of(None)[:8], calibrate=None, data=None)
    for wanted, forms in ((Precision.FP16, []), (Precision.FP8, []), (Precision.INT8, ["signed"])):
        (recipe,) = recipes.recipes(fp32, wanted, forms, parts, method=None, cache=None, progress=silent)
        in_float = recipe.layers.in_float
        model = recipe.build(in_float)
        search.write(recipe.described(in_float, precision.module(wanted).BUDGET, model), model, PROVEN)


@pytest.mark.slow
def test_every_network_is_built_in_every_precision_for_three_gpus(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packaged weights, from the command line, on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    for name in models.names():
        export_packaged(name)
        for wanted in Precision:
            for capability in CAPABILITIES[wanted]:
                engine = f"trt-rtx:{wanted}"
                told = run("build", "--model", name, "--engine", engine, "--compute-capability", capability, "--json")
                assert told.code == 0, told.err
                require_audited(told.json(), name, wanted, capability)
    assert len(list(Path("engines").glob("*.plan"))) == len(models.names()) * sum(map(len, CAPABILITIES.values()))


def require_audited(report: Mapping[str, Any], name: str, wanted: Precision, capability: str) -> None:
    path = workspace.ENGINES / f"{name}.trt-rtx.{wanted}.cc{capability.replace('.', '')}.plan"
    assert report["path"] == str(path)
    plan, data = signature.read(path)
    assert (plan.spec.model, plan.precision, plan.sha256) == (name, wanted, hashlib.sha256(data).hexdigest())
    facts, source = signature.facts_of(plan), plan.origin.graph
    assert (facts.target.compute_capability, facts.target.gpu, facts.runtime) == (capability, None, "trt-rtx")
    assert facts.asked.get(wanted, 0) >= 0.5
    assert facts.typed.work == pytest.approx(facts.asked)
    assert facts.executed.delivered == ("fp32" if wanted is Precision.FP32 else None)
    assert source is not None
    graph = artifact.read(path.parent / source.path)
    assert graph.sha256 == source.sha256
    if wanted is not Precision.FP32:
        low = Graph(onnx.load(graph.path))
        work, types = layer_work(low), layer_types(low)
        share = sum(work[layer] for layer, kind in types.items() if kind is wanted) / sum(work.values())
        assert facts.typed.work[wanted] == pytest.approx(share)
    assert plan.certificate is not None
    assert [stage.name for stage in plan.certificate.stages if stage.passed is None] == ["engine"]


@pytest.mark.slow
def test_ctrl_c_ends_the_command_with_its_exit_code(tmp_path: Path) -> None:
    """As soon as its bar says that it builds; full-size networks take some seconds."""
    torch.manual_seed(0)
    network: Any = models.build("deeplabv3", 2).eval()
    spec = dataclasses.replace(SPEC, model="deeplabv3", name="deeplabv3", variant={}, height=360, width=480)
    graph = export.to_onnx(network, spec, tmp_path / "deeplabv3.fp32.onnx", weights=WEIGHTS)
    command = [
        str(COMMAND),
        "build",
        "--model",
        str(graph.path),
        "--engine",
        "trt-rtx:fp32",
        "--compute-capability",
        "8.9",
    ]
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, cwd=tmp_path, stderr=theirs, env={**os.environ, "TERM": "xterm"}) as process:
        said = b""
        while b"Building" not in said:
            said += os.read(ours, 1000)
        process.send_signal(signal.SIGINT)
        while process.poll() is None:  # a terminal that nobody reads from stops whoever writes to it
            said += os.read(ours, 1000) if select.select([ours], [], [], 0.1)[0] else b""
        assert process.returncode == 130, said
    assert not (tmp_path / "engines").exists()
