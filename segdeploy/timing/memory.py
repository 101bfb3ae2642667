"""How much memory an engine needs, measured in a process that does nothing else."""

import contextlib
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from segdeploy import artifact as artifacts
from segdeploy import engines, signature
from segdeploy.artifact import Artifact
from segdeploy.checkpoints import checkpoint
from segdeploy.engines import RUN, RunOptions
from segdeploy.errors import SegdeployError
from segdeploy.spec import Spec
from segdeploy.timing import machine

MB = 2**20
CALLS = 2  # the second has all that the first had to make
PATIENCE_S = 600  # the largest network builds its kernels in less
STATUS = Path("/proc/self/status")
MEASURES = "from segdeploy.benchmarks import memory; memory.main()"
READ = {"checkpoint": checkpoint.read, "graph": artifacts.read, "plan": signature.read_manifest}


def peak(
    file: Artifact, *, runtime: str, device: str, batch: int, options: RunOptions = RUN
) -> dict[str, float | str | None]:
    """MiB that opening an engine and classifying a batch twice takes at most; null with its reason where it fails.

    `host_peak_mb`: what the process grew by from before it imported the runtime. `device_peak_mb`: what the GPU's used
    memory grew by, null where NVML (segdeploy[bench]) does not tell it; it counts whatever else starts meanwhile.
    """
    asked = {
        "path": str(file.path.resolve()),
        "kind": file.kind,
        "spec": file.spec.to_json(),
        "runtime": runtime,
        "device": device,
        "batch": batch,
        "options": dataclasses.asdict(options),
    }
    try:
        done = subprocess.run(  # noqa: S603 - this very program
            [sys.executable, "-c", MEASURES],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return _unknown(f"its process did not end: {error}")
    if done.returncode != 0:
        return _unknown(_reason(done))
    found: dict[str, float | str | None] = json.loads(done.stdout.splitlines()[-1])
    return found


def _unknown(reason: str) -> dict[str, float | str | None]:
    return {"host_peak_mb": None, "device_peak_mb": None, "reason": reason}


def _reason(done: "subprocess.CompletedProcess[str]") -> str:
    if done.returncode < 0:
        return f"its process was ended by signal {-done.returncode}; the machine may have too little memory."
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"its process ended with {done.returncode}."


def main() -> None:
    """The process of its own: a request on stdin, the answer on stdout."""
    try:
        print(json.dumps(_measured(json.load(sys.stdin))))  # noqa: T201 - that is the answer
    except SegdeployError as error:
        print(json.dumps(_unknown(error.what)))  # noqa: T201


def _measured(asked: dict[str, Any]) -> dict[str, float | str | None]:
    found = READ[asked["kind"]](Path(asked["path"]))
    file = dataclasses.replace(found, spec=Spec.from_json(asked["spec"]))
    images = np.zeros((asked["batch"], file.spec.height, file.spec.width, 3), np.uint8)
    options = RunOptions(**asked["options"])
    with machine.nvml() as gpu:
        before, on_device, most = _resident_mb(), _used_mb(gpu), None
        with engines.open_engine(file, runtime=asked["runtime"], device=asked["device"], options=options) as engine:
            for _ in range(CALLS):
                engine.classify(images)
                most = _used_mb(gpu)  # GPU runtimes keep what they took
    host = None if before is None else _peak_mb() - before
    device = None if on_device is None or most is None or asked["device"] == "cpu" else most - on_device
    reason = None if host is not None else "this system does not say what a process has in memory."
    return {"host_peak_mb": host, "device_peak_mb": device, "reason": reason}


def _resident_mb() -> float | None:
    return _status_mb("VmRSS")


def _peak_mb() -> float:
    """The most this process ever had. VmHWM, for a child's ru_maxrss begins with what its parent had."""
    if (found := _status_mb("VmHWM")) is not None:
        return found
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _status_mb(field: str) -> float | None:
    """What the kernel says of this process; None where it does not."""
    text = STATUS.read_text(encoding="ascii") if STATUS.is_file() else ""
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return None if found is None else int(found[1]) / 1024


def _used_mb(gpu: Any) -> float | None:  # noqa: ANN401 - pynvml and a handle, or None
    if gpu is None:
        return None
    pynvml, handle = gpu
    with contextlib.suppress(pynvml.NVMLError):
        return float(pynvml.nvmlDeviceGetMemoryInfo(handle).used) / MB
    return None
