"""The GPU lane, as far as it goes without one."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_check.py"


def gpu_check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: make gpu-check")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    done = gpu_check("--out", tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.splitlines()[-2].startswith("Error: no runtime here can use a GPU")
    assert list(tmp_path.iterdir()) == []


def test_trtexecs_times_are_read_from_what_it_prints() -> None:
    """Latency, with copies, and enqueue times stand beside the one that counts."""
    log = """
[I] Throughput: 1234.5 qps
[I] Latency: min = 0.9 ms, max = 2 ms, mean = 1 ms, median = 1.1 ms, percentile(90%) = 1.2 ms, percentile(99%) = 1.9 ms
[I] GPU Compute Time: min = 0.7 ms, max = 1 ms, mean = 0.8 ms, median = 0.79 ms, percentile(90%) = 0.81 ms, \
percentile(95%) = 0.82 ms, percentile(99%) = 0.9 ms
""".replace("\\\n", "")
    peer = runpy.run_path(str(SCRIPT.parent / "peers" / "trtexec.py"))
    assert peer["parsed"](log, 8) == (0.79, 0.9, 8 * 1234.5)


@pytest.mark.slow
def test_its_rehearsal_tests_proves_and_times_every_engine_of_the_cpu(tmp_path: Path) -> None:
    done = gpu_check("--rehearse", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "gpu_rehearsal.json").read_text())
    assert report["tests"]["passed"] > 20
    timed = {(row["engine"], row["level"]) for row in report["rows"] if "error" not in row}
    for engine in ("torch eager fp32", "torch.compile fp16", "ort:fp32", "ov:fp16"):
        assert {(engine, "host"), (engine, "image_to_mask")} <= timed
    assert [row["engine"] for row in report["rows"] if "error" in row] == []
    assert {proof["engine"] for proof in report["proofs"]} >= {"torch:fp32", "ort:fp32", "ort:int8", "ov:int8"}
    assert all(proof["passed"] for proof in report["proofs"])
