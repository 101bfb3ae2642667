"""What a number was measured on, under which conditions, and with which code."""

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from segdeploy._version import __version__
from segdeploy.engines import _cuda
from segdeploy.errors import SegdeployError

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
MOST_STEAL = 0.02  # of the time: above it, a median moves by more than the 3 % its interval is narrowed to
MOST_OTHERS = 0.1  # of our processors' capacity: a desktop at rest takes less, a second job more
# NVML's bits for a clock that something lowered; idle and the user's own settings are none of them.
THROTTLES = {
    0x4: "its power limit",
    0x8: "its hardware",
    0x20: "its temperature",
    0x40: "its temperature, in hardware",
    0x80: "the power supply",
}


def describe() -> dict[str, Any]:
    """Processor, cores this process may use, memory, GPU, system and versions."""
    return {
        "processor": _processor(),
        "cores": len(affinity()),
        "affinity": affinity(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "gpu": _gpu(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": versions(),
    }


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


def affinity() -> list[int]:
    """The processors this process may run on, by number."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def provenance() -> dict[str, str | None]:
    """The version, and the commit of the checkout that the package runs from; null where it is installed apart."""
    return {"version": __version__, "commit": _commit(Path(__file__).resolve().parents[2])}


def _commit(root: Path) -> str | None:
    """The short hash, with `+changes` where tracked files differ. A repository around the package is not the package's.

    A virtual environment lies inside a user's repository, and its packages are not tracked there.
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


def _gpu() -> dict[str, Any] | None:
    with nvml() as gpu:
        if gpu is not None:
            with contextlib.suppress(gpu[0].NVMLError):
                return _nvml_facts(*gpu)
    try:
        cuda = _cuda.connect()
    except SegdeployError:
        return None
    try:
        with cuda.active():
            return dataclasses.asdict(cuda.gpu())
    except SegdeployError:
        return None
    finally:
        cuda.close()


def _nvml_facts(pynvml: Any, handle: Any) -> dict[str, Any]:  # noqa: ANN401 - an optional module
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return {
        "name": _text(pynvml.nvmlDeviceGetName(handle)),
        "compute_capability": f"{major}.{minor}",
        "memory_mb": pynvml.nvmlDeviceGetMemoryInfo(handle).total // 2**20,
        "driver": _text(pynvml.nvmlSystemGetDriverVersion()),
    }


def _text(said: str | bytes) -> str:
    return said.decode() if isinstance(said, bytes) else said


def _gpu_now() -> dict[str, Any] | None:
    with nvml() as gpu:
        if gpu is None:
            return None
        pynvml, handle = gpu
        with contextlib.suppress(pynvml.NVMLError):
            reasons = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
            return {
                "clock_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
                "temperature_c": pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
                "throttle_reasons": [reason for bit, reason in THROTTLES.items() if reasons & bit],
            }
    return None


# Conditions


class Conditions:
    """What disturbed a block of measurements: `with conditions() as found: ...`, then `found.report()`."""

    def __enter__(self) -> Self:
        self._started, self._before = time.perf_counter(), _counters()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._seconds, self._after = time.perf_counter() - self._started, _counters()
        self._gpu = _gpu_now()  # while it is still warm and its clocks are what they were

    def report(self) -> dict[str, Any]:
        """Shares of the processors' time, in 0..1; null for what this system does not say. `flags`: what to doubt."""
        facts = {**_differences(self._before, self._after, self._seconds), "gpu": self._gpu}
        return {"seconds": self._seconds, **facts, "flags": _flags(facts)}


def conditions() -> Conditions:
    return Conditions()


Counters = Mapping[str, float | None]


def _counters() -> Counters:
    """What the system has counted until now, in seconds or times; the clock in MHz."""
    return {
        **_processor_times(),
        "own": sum(os.times()[:4]),
        "cgroup_throttled_s": _cgroup_throttled_s(),
        "thermal_throttles": _thermal_throttles(),
        "clock_mhz": _clock_mhz(),
    }


def _processor_times() -> dict[str, float | None]:
    """Seconds of our processors: in all, stolen by the host of a virtual machine, and at work."""
    names = {f"cpu{number}" for number in affinity()}
    lines = [line.split() for line in (_read(PROC / "stat") or "").splitlines()]
    rows = [[int(field) / _ticks() for field in line[1:9]] for line in lines if line and line[0] in names]
    if not rows:
        return {"total": None, "steal": None, "busy": None}
    user, nice, system, idle, waiting, hard, soft, steal = (sum(column) for column in zip(*rows, strict=True))
    busy = user + nice + system + hard + soft
    return {"total": busy + idle + waiting + steal, "steal": steal, "busy": busy}


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
    read = [_read(CPUS / f"cpu{number}" / file) for number in affinity()]
    found = [int(text) for text in read if text and text.strip().isdigit()]
    return joined(found) if found else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _differences(before: Counters, after: Counters, seconds: float) -> dict[str, Any]:
    def grown(key: str) -> float | None:
        first, last = before[key], after[key]
        return None if first is None or last is None else max(0.0, last - first)

    total, steal, busy, own = (grown(key) for key in ("total", "steal", "busy", "own"))
    capacity = len(affinity()) * seconds
    others = None if busy is None or own is None or not capacity else min(1.0, max(0.0, busy - own) / capacity)
    clocks = [clock for clock in (before["clock_mhz"], after["clock_mhz"]) if clock is not None]
    return {
        "steal_share": None if steal is None or not total else steal / total,
        "others_share": others,
        "cgroup_throttled_s": grown("cgroup_throttled_s"),
        "thermal_throttles": grown("thermal_throttles"),
        "clock_mhz": {"min": min(clocks), "max": max(clocks)} if clocks else None,
    }


def _flags(facts: Mapping[str, Any]) -> list[str]:
    """A sentence for each disturbance; what is unknown disturbs nothing."""
    found = []
    if (facts["steal_share"] or 0) > MOST_STEAL:
        found.append(f"{facts['steal_share']:.0%} of the processor time was taken by other guests of the host")
    if (facts["others_share"] or 0) > MOST_OTHERS:
        found.append(f"other processes took {facts['others_share']:.0%} of the processors")
    if facts["cgroup_throttled_s"]:
        found.append(f"the container's quota held its processes for {facts['cgroup_throttled_s']:.2f} s")
    if facts["thermal_throttles"]:
        found.append(f"the processor grew too hot {facts['thermal_throttles']:.0f} times and lowered its clock")
    reasons = (facts["gpu"] or {}).get("throttle_reasons")
    if reasons:
        found.append(f"the GPU lowered its clock for {' and '.join(reasons)}")
    return found
