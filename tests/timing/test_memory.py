"""What an engine needs, of whatever kind, and what stands there when that cannot be found out."""

import dataclasses
from pathlib import Path

import pytest

from segdeploy import artifact
from segdeploy.checkpoints import checkpoint
from segdeploy.engines import RunOptions
from segdeploy.timing import memory

GRAPH, CHECKPOINT = Path("export/unet.fp32.onnx"), Path("checkpoints/unet.safetensors")
ONE_THREAD = RunOptions(threads=1)


def host_mb(batch: int, runtime: str = "ort") -> float:
    found = memory.peak(artifact.read(GRAPH), runtime=runtime, device="cpu", batch=batch, options=ONE_THREAD)
    assert found.reason is None
    assert found.device_peak_mb is None
    return float(found.host_peak_mb or 0)


@pytest.mark.slow
@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("runtime", ["ort", "ov"])
def test_a_larger_batch_needs_more(runtime: str) -> None:
    """Sixty-four images of 64 x 64 have 16 times the activations of four."""
    few, many = host_mb(4, runtime), host_mb(64, runtime)
    assert 5 < few < many - 5


@pytest.mark.slow
@pytest.mark.usefixtures("workspace")
def test_a_peak_comes_out_the_same_again() -> None:
    """Nothing of this process is in it. Measured on a U-Net of full size: 77.61 MiB, five times within 0.01."""
    first = host_mb(4)
    ballast = bytearray(2**28)
    assert host_mb(4) == pytest.approx(first, rel=0.1)
    assert len(ballast) == 2**28


@pytest.mark.slow
@pytest.mark.usefixtures("workspace")
def test_a_checkpoint_has_a_peak_as_well() -> None:
    found = memory.peak(checkpoint.read(CHECKPOINT), runtime="torch", device="cpu", batch=1, options=ONE_THREAD)
    assert found.reason is None
    assert float(found.host_peak_mb or 0) > 20


@pytest.mark.usefixtures("workspace")
def test_what_cannot_be_opened_has_a_reason_and_no_number() -> None:
    """A bench goes on without it."""
    gone = dataclasses.replace(artifact.read(GRAPH), path=Path("export/gone.onnx"))
    found = memory.peak(gone, runtime="ort", device="cpu", batch=1)
    assert (found.host_peak_mb, found.device_peak_mb) == (None, None)
    assert "gone.onnx" in str(found.reason)


@pytest.mark.usefixtures("workspace")
def test_a_process_that_is_killed_has_a_reason_and_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel ends whoever takes too much."""
    monkeypatch.setattr(memory, "MEASURES", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    found = memory.peak(artifact.read(GRAPH), runtime="ort", device="cpu", batch=1)
    assert found.host_peak_mb is None
    assert "signal 9" in str(found.reason)
