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
from segdeploy import engines, signature, typed_json
from segdeploy.artifact import Artifact, Kind
from segdeploy.checkpoints import opening
from segdeploy.engines import RUN, Engine, RunOptions
from segdeploy.errors import InvalidFileError, SegdeployError
from segdeploy.spec import Spec
from segdeploy.timing import machine
from segdeploy.timing.result_types import Memory

MB = 2**20
CALLS = 2  # the second has all that the first had to make
PATIENCE_S = 600  # the largest network builds its kernels in less
STATUS = Path("/proc/self/status")
MEASURES = "from segdeploy.timing import memory; memory.main()"
READ = {"checkpoint": opening.read, "graph": artifacts.read, "plan": signature.read_manifest}
REMEDY = "Measure it again: segdeploy bench"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the process of its own is to open and run, as JSON on its stdin; it answers with `Memory`."""

    path: Path
    kind: Kind
    spec: Spec
    runtime: str
    device: str
    batch: int
    options: RunOptions


def peak(file: Artifact, *, runtime: str, device: str, batch: int, options: RunOptions = RUN) -> Memory:
    """MiB that opening an engine and classifying a batch twice takes at most; None with its reason where it fails.

    `host_peak_mb`: what the process grew by from before it imported the runtime. `device_peak_mb`: what the GPU's used
    memory grew by, None where NVML (segdeploy[bench]) does not tell it; it counts whatever else starts meanwhile.
    """
    request = Request(
        path=file.path.resolve(),
        kind=file.kind,
        spec=file.spec,
        runtime=runtime,
        device=device,
        batch=batch,
        options=options,
    )
    try:
        done = subprocess.run(  # noqa: S603 - this very program
            [sys.executable, "-c", MEASURES],
            input=typed_json.to_text(request).decode(),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Memory(reason=f"its process did not end: {error}")
    return _answer(done)


def _answer(done: "subprocess.CompletedProcess[str]") -> Memory:
    """The last line of what the process wrote, for a runtime may write there too."""
    if done.returncode != 0 or not done.stdout.strip():
        return Memory(reason=_reason(done))
    where = "the answer of the process that measures memory"
    try:
        document = typed_json.parse(done.stdout.splitlines()[-1], where=where, remedy=REMEDY)
        return typed_json.convert(document, Memory, where=where, remedy=REMEDY)
    except InvalidFileError as error:
        return Memory(reason=error.what)


def _reason(done: "subprocess.CompletedProcess[str]") -> str:
    if done.returncode < 0:
        return f"its process was ended by signal {-done.returncode}; the machine may have too little memory."
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"its process ended with {done.returncode}."


def main() -> None:
    """The process of its own: a request on stdin, the answer in one line on stdout."""
    try:
        document = typed_json.parse(sys.stdin.read(), where="the request", remedy=REMEDY)
        answer = _measured(typed_json.convert(document, Request, where="the request", remedy=REMEDY))
    except SegdeployError as error:
        answer = Memory(reason=error.what)
    print(json.dumps(typed_json.to_builtins(answer)))  # noqa: T201 - that is the answer


def _measured(request: Request) -> Memory:
    file = dataclasses.replace(READ[request.kind](request.path), spec=request.spec)
    images = np.zeros((request.batch, file.spec.height, file.spec.width, 3), np.uint8)
    with machine.nvml() as gpu:
        before, on_device, most = _resident_mb(), _used_mb(gpu), None
        with _opened(file, request) as engine:
            for _ in range(CALLS):
                engine.classify(images)
                most = _used_mb(gpu)  # GPU runtimes keep what they took
    host = None if before is None else _peak_mb() - before
    device = None if on_device is None or most is None or request.device == "cpu" else most - on_device
    reason = None if host is not None else "this system does not say what a process has in memory."
    return Memory(host_peak_mb=host, device_peak_mb=device, reason=reason)


def _opened(file: Artifact, request: Request) -> Engine:
    return engines.open_engine(file, runtime=request.runtime, device=request.device, options=request.options)


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
