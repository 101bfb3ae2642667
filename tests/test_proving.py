"""What is proven, and where the proof is kept."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import segdeploy
from segdeploy import ProofOptions, artifact
from segdeploy.benchmarking import BenchOptions
from segdeploy.errors import GateFailedError
from segdeploy.spec import Spec
from segdeploy.timing.latency import Effort

EXAMPLES = Path(__file__).parents[1] / "examples" / "nuclei"


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
        segdeploy.export("unet")
    graph = artifact.read(tmp_path / "export" / "unet.fp32.onnx")
    assert graph.certificate is not None
    assert not graph.certificate.passed
    with pytest.raises(GateFailedError):
        segdeploy.infer(EXAMPLES / "images", model="unet")
    assert not (tmp_path / "masks").exists()
    timed = segdeploy.bench("unet", options=BenchOptions(engines=["ort:fp32"], effort=Effort(runs=1)))
    assert timed.rows[0].agreement is not None
    assert timed.rows[0].agreement < 1


def test_parity_of_pytorch_itself_leaves_the_graphs_proof_alone(packaged: Path) -> None:
    manifest = packaged / "export" / "unet.fp32.onnx.json"
    before = manifest.read_bytes()
    found = segdeploy.parity("unet", engine="torch:fp32", data=EXAMPLES)
    assert [stage.name for stage in found.stages] == ["engine", "engine, batch 3"]
    assert [stage.agreement for stage in found.stages] == [1.0, 1.0]
    assert manifest.read_bytes() == before


def test_a_proof_takes_the_place_of_the_one_in_the_manifest(workspace: Path, labelled: Path) -> None:
    """Under limits that a caller gave it stands beside the one by the file's own limits, which opens doors."""
    found = segdeploy.parity("unet", engine="ort:fp32", data=labelled, options=ProofOptions(min_agreement=0.5))
    assert (found.images, found.limits.min_agreement) == (3, 0.5)
    kept = artifact.read(workspace / "export" / "unet.fp32.onnx")
    assert kept.certificate_as_asked == found
    assert kept.certificate is not None
    assert (kept.certificate.images, kept.certificate.limits.min_agreement) == (3, 0.9999)
