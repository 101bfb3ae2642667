"""What was measured on: the machine, what disturbed it meanwhile, and the version of the code."""

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from segdeploy import arithmetic, cores, engines
from segdeploy._version import __version__
from segdeploy.errors import SegdeployError
from segdeploy.target import Gpu
from segdeploy.timing.result_types import ClockRange, Conditions, GpuState, Machine

PACKAGES = (
    "numpy",
    "pillow",
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-cu13",
    "tensorrt-rtx",
    "cuda-bindings",
    "pycuda",
)
PROC, CPUS, CGROUP = Path("/proc"), Path("/sys/devices/system/cpu"), Path("/sys/fs/cgroup")
MOST_STEAL = 0.02  # of the time: above it, a median moves by more than half the width of its interval, 3 %
MOST_OTHERS = 0.1  # of our processors' capacity: a desktop at rest takes less, a second job more
# NVML's bits for a clock that something lowered; idle and the user's own settings are none of them.
THROTTLES = {
    0x4: "its power limit",
    0x8: "its hardware",
    0x20: "its temperature",
    0x40: "its temperature, in hardware",
    0x80: "the power supply",
}


def describe() -> Machine:
    """Processor, its instruction set, cores this process may use, memory, GPU, system and versions."""
    return Machine(
        processor=_processor(),
        instruction_set=arithmetic.instruction_set(),
        cores=cores.usable(),
        affinity=tuple(cores.affinity()),
        memory_mb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        gpu=_gpu(),
        system=platform.platform(),
        python=platform.python_version(),
        packages=versions(),
    )


def versions() -> dict[str, str]:
    found = (dist for dist in importlib.metadata.distributions() if dist.name)
    installed = {dist.name.lower().replace("_", "-"): dist.version for dist in found}
    return {package: installed[package] for package in PACKAGES if package in installed}


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class Provenance(NamedTuple):
    """The version of segdeploy, and the commit of the checkout that it runs from; None where it is installed."""

    version: str
    commit: str | None


def provenance() -> Provenance:
    return Provenance(__version__, _commit(Path(__file__).resolve().parents[2]))


def _commit(root: Path) -> str | None:
    """The short hash, with `+changes` where tracked files differ; None where the package is no part of a repository.

    A virtual environment may lie inside a user's repository, which does not track the packages in it.
    """
    tracked = _git(root, "ls-files", "segdeploy/__init__.py")
    commit = _git(root, "rev-parse", "--short", "HEAD") if tracked and (root / ".git").exists() else None
    if not commit:
        return None
    return f"{commit}+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else commit


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


# The GPU


@contextlib.contextmanager
def nvml() -> Iterator[tuple[Any, Any] | None]:
    """NVIDIA's management library (segdeploy[bench]) and the first GPU, or None."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no package, no library, no driver: each binding has its own errors
        yield None
        return
    try:
        handle = None
        with contextlib.suppress(pynvml.NVMLError):
            handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        yield None if handle is None else (pynvml, handle)
    finally:
        pynvml.nvmlShutdown()


def _gpu() -> Gpu | None:
    with nvml() as gpu:
        if gpu is not None:
            with contextlib.suppress(gpu[0].NVMLError):
                return _nvml_facts(*gpu)
    try:
        return engines.gpu_here()
    except SegdeployError:
        return None


def _nvml_facts(pynvml: Any, handle: Any) -> Gpu:  # noqa: ANN401 - an optional module
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    version = pynvml.nvmlSystemGetCudaDriverVersion()
    return Gpu(
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        compute_capability=f"{major}.{minor}",
        memory_mb=pynvml.nvmlDeviceGetMemoryInfo(handle).total // 2**20,
        driver=_text(pynvml.nvmlSystemGetDriverVersion()),
        cuda=f"{version // 1000}.{version % 1000 // 10}",
    )


def _text(said: str | bytes) -> str:
    return said.decode() if isinstance(said, bytes) else said


def _gpu_now() -> GpuState | None:
    with nvml() as gpu:
        if gpu is None:
            return None
        pynvml, handle = gpu
        with contextlib.suppress(pynvml.NVMLError):
            reasons = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
            return GpuState(
                clock_mhz=pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
                temperature_c=pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
                throttle_reasons=tuple(reason for bit, reason in THROTTLES.items() if reasons & bit),
            )
    return None


# Conditions


class Observation:
    """What disturbed a block of measurements: `with conditions() as found: ...`, then `found.report()`."""

    def __enter__(self) -> Self:
        self._started, self._before = time.perf_counter(), _counters()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._seconds, self._after = time.perf_counter() - self._started, _counters()
        self._gpu = _gpu_now()  # while it is still warm and its clocks are what they were

    def report(self) -> Conditions:
        """Shares of the processors' time, in 0..1; None for what this system does not say. `flags`: what to doubt."""
        found = dataclasses.replace(_differences(self._before, self._after, self._seconds), gpu=self._gpu)
        return dataclasses.replace(found, flags=tuple(disturbances(found)))


def conditions() -> Observation:
    return Observation()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What the system has counted until now, in seconds or times, and the clock in MHz; None where it does not say.

    `total`, `steal` and `busy` are seconds of our processors: in all, taken by the host of a virtual machine, at work.
    `own`: of this process and its children.
    """

    total: float | None
    steal: float | None
    busy: float | None
    own: float
    cgroup_throttled_s: float | None
    thermal_throttles: float | None
    clock_mhz: float | None


def _counters() -> Counters:
    total, steal, busy = _processor_times()
    return Counters(
        total=total,
        steal=steal,
        busy=busy,
        own=sum(os.times()[:4]),
        cgroup_throttled_s=_cgroup_throttled_s(),
        thermal_throttles=_thermal_throttles(),
        clock_mhz=_clock_mhz(),
    )


def _processor_times() -> tuple[float, float, float] | tuple[None, None, None]:
    """Seconds of our processors: in all, taken by the host of a virtual machine, and at work."""
    names = {f"cpu{number}" for number in cores.affinity()}
    lines = [line.split() for line in (_read(PROC / "stat") or "").splitlines()]
    rows = [[int(field) / _ticks() for field in line[1:9]] for line in lines if line and line[0] in names]
    if not rows:
        return None, None, None
    user, nice, system, idle, waiting, hard, soft, steal = (sum(column) for column in zip(*rows, strict=True))
    busy = user + nice + system + hard + soft
    return busy + idle + waiting + steal, steal, busy


def _ticks() -> int:
    return os.sysconf("SC_CLK_TCK")


def _cgroup_throttled_s() -> float | None:
    """Of our control group, version 2 or 1: how long its quota held it."""
    groups = dict(line.split(":", 2)[1:] for line in (_read(PROC / "self/cgroup") or "").splitlines())
    second = CGROUP / groups.get("", "/").lstrip("/") / "cpu.stat"
    first = CGROUP / "cpu" / groups.get("cpu", groups.get("cpu,cpuacct", "/")).lstrip("/") / "cpu.stat"
    for path, key, per_second in ((second, "throttled_usec", 1e6), (first, "throttled_time", 1e9)):
        found = re.search(rf"^{key} (\d+)", _read(path) or "", re.MULTILINE)
        if found is not None:
            return int(found[1]) / per_second
    return None


def _thermal_throttles() -> float | None:
    return _of_processors("thermal_throttle/core_throttle_count", sum)


def _clock_mhz() -> float | None:
    """The mean of our processors, as the kernel's governor has it."""
    return _of_processors("cpufreq/scaling_cur_freq", lambda found: sum(found) / len(found) / 1000)


def _of_processors(file: str, joined: Callable[[list[int]], float]) -> float | None:
    read = [_read(CPUS / f"cpu{number}" / file) for number in cores.affinity()]
    found = [int(text) for text in read if text and text.strip().isdigit()]
    return joined(found) if found else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _differences(before: Counters, after: Counters, seconds: float) -> Conditions:
    total, steal = _grown(before.total, after.total), _grown(before.steal, after.steal)
    busy, own = _grown(before.busy, after.busy), max(0.0, after.own - before.own)
    capacity = len(cores.affinity()) * seconds
    clocks = [clock for clock in (before.clock_mhz, after.clock_mhz) if clock is not None]
    return Conditions(
        seconds=seconds,
        steal_share=None if steal is None or not total else steal / total,
        others_share=None if busy is None or not capacity else min(1.0, max(0.0, busy - own) / capacity),
        cgroup_throttled_s=_grown(before.cgroup_throttled_s, after.cgroup_throttled_s),
        thermal_throttles=_grown(before.thermal_throttles, after.thermal_throttles),
        clock_mhz=ClockRange(min=min(clocks), max=max(clocks)) if clocks else None,
    )


def _grown(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else max(0.0, after - before)


def disturbances(found: Conditions) -> list[str]:
    """A sentence for each disturbance; what the system does not say is none."""
    told = []
    if found.steal_share is not None and found.steal_share > MOST_STEAL:
        told.append(f"{found.steal_share:.0%} of the processor time was taken by other guests of the host")
    if found.others_share is not None and found.others_share > MOST_OTHERS:
        told.append(f"other processes took {found.others_share:.0%} of the processors")
    if found.cgroup_throttled_s:
        told.append(f"the container's quota held its processes for {found.cgroup_throttled_s:.2f} s")
    if found.thermal_throttles:
        told.append(f"the processor grew too hot {found.thermal_throttles:.0f} times and lowered its clock")
    if found.gpu is not None and found.gpu.throttle_reasons:
        told.append(f"the GPU lowered its clock for {' and '.join(found.gpu.throttle_reasons)}")
    return told
