"""Facts and disturbances: each source is optional, and what is said is what the system said."""

import os
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segdeploy import cores
from segdeploy.target import Gpu
from segdeploy.timing import machine
from segdeploy.timing.result_types import ClockRange, Conditions

QUIET = Conditions(steal_share=0.0, others_share=0.0, cgroup_throttled_s=0.0, thermal_throttles=0)


class FakeNvml(types.ModuleType):
    """The binding, with one warm GPU."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

    class NVMLError(Exception):
        pass

    def __init__(self, reasons: int = 0) -> None:
        super().__init__("pynvml")
        self.opened, self.reasons = 0, reasons

    def nvmlInit(self) -> None:  # noqa: N802 - the binding's names
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.opened -= 1

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as the binding's functions
        answers: dict[str, Any] = {
            "nvmlDeviceGetHandleByIndex": "gpu",
            "nvmlDeviceGetName": b"Fake RTX 1",
            "nvmlDeviceGetCudaComputeCapability": (8, 9),
            "nvmlDeviceGetMemoryInfo": types.SimpleNamespace(total=8 * 2**30, used=2**30),
            "nvmlSystemGetDriverVersion": "590.1",
            "nvmlSystemGetCudaDriverVersion": 13010,
            "nvmlDeviceGetClockInfo": 1500,
            "nvmlDeviceGetTemperature": 61,
            "nvmlDeviceGetCurrentClocksThrottleReasons": self.reasons,
        }
        if name not in answers:
            raise AttributeError(name)
        return lambda *_: answers[name]


def test_the_machine_is_described() -> None:
    facts = machine.describe()
    assert 1 <= facts.cores == cores.usable() <= len(facts.affinity)
    assert facts.affinity == tuple(sorted(os.sched_getaffinity(0)))
    assert facts.memory_mb > 100
    assert facts.packages["numpy"] == np.__version__


def test_a_gpu_is_described_by_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    facts = Gpu("Fake RTX 1", compute_capability="8.9", memory_mb=8192, driver="590.1", cuda="13.1")
    assert machine.describe().gpu == facts
    assert nvml.opened == 0, "what was opened is closed"


def test_a_driver_that_fails_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()

    def fail(*_: object) -> None:
        raise nvml.NVMLError

    monkeypatch.setattr(nvml, "nvmlDeviceGetHandleByIndex", fail, raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with machine.nvml() as gpu:
        assert gpu is None
    assert nvml.opened == 0


@pytest.mark.parametrize("reasons,flags", [(0x1 | 0x2, 0), (0x4, 1), (0x20 | 0x40, 1)])
def test_a_gpu_that_lowers_its_clock_is_flagged(monkeypatch: pytest.MonkeyPatch, reasons: int, flags: int) -> None:
    """Idle, and clocks that the user set, are no disturbance."""
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(reasons))
    with machine.conditions() as found:
        pass
    report = found.report()
    assert report.gpu is not None
    assert report.gpu.clock_mhz == 1500
    assert report.gpu.temperature_c == 61
    assert len([flag for flag in report.flags if "GPU" in flag]) == flags


@pytest.mark.parametrize(
    "disturbed,word",
    [
        (Conditions(steal_share=0.12), "12% of the processor time was taken by other guests"),
        (Conditions(others_share=0.5), "other processes took 50%"),
        (Conditions(cgroup_throttled_s=0.5), "quota"),
        (Conditions(thermal_throttles=3), "too hot 3 times"),
    ],
)
def test_each_disturbance_is_a_sentence(disturbed: Conditions, word: str) -> None:
    assert machine.disturbances(QUIET) == []
    (flag,) = machine.disturbances(disturbed)
    assert word in flag


def spin(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def test_others_are_told_from_ourselves() -> None:
    """What this process burns is the measurement; what another burns beside it disturbs."""
    with machine.conditions() as alone:
        spin(1)
    command = "import time\nend = time.perf_counter() + 60\nwhile time.perf_counter() < end: pass"
    other = subprocess.Popen([sys.executable, "-c", command])
    try:
        with machine.conditions() as disturbed:
            time.sleep(2)
    finally:
        other.kill()
        other.wait()
    expected = 1 / len(os.sched_getaffinity(0))
    found = disturbed.report()
    undisturbed = alone.report().others_share
    assert found.others_share is not None
    assert undisturbed is not None
    assert found.others_share > 0.5 * expected
    assert found.others_share > undisturbed or undisturbed > 0.5 * expected
    assert found.seconds == pytest.approx(2, rel=0.5)


def test_what_the_system_does_not_say_is_null(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for source in ("PROC", "CPUS", "CGROUP"):
        monkeypatch.setattr(machine, source, tmp_path / "nowhere")
    with machine.conditions() as found:
        pass
    report = found.report()
    for fact in ("steal_share", "others_share", "cgroup_throttled_s", "thermal_throttles", "clock_mhz"):
        assert getattr(report, fact) is None
    assert report.flags == ()


def test_what_the_kernel_counts_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stolen second, a held one, a hot moment, a clock that fell; version 2 of control groups."""
    number, ticks = cores.affinity()[0], os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(cores, "affinity", lambda: [number])
    for source in ("PROC", "CPUS", "CGROUP"):
        monkeypatch.setattr(machine, source, tmp_path)

    def write(name: str, text: object) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")

    def state(stolen_s: int, throttled_us: int, hot: int, khz: int) -> None:
        write("stat", f"cpu 9 9 9 9 9 9 9 9 0 0\ncpu{number} 0 0 0 {100 * ticks} 0 0 0 {stolen_s * ticks} 0 0")
        write("self/cgroup", "0::/mine")
        write("mine/cpu.stat", f"usage_usec 5\nthrottled_usec {throttled_us}")
        write(f"cpu{number}/thermal_throttle/core_throttle_count", hot)
        write(f"cpu{number}/cpufreq/scaling_cur_freq", khz)

    state(0, 0, 4, 3_000_000)
    with machine.conditions() as found:
        state(1, 2_000_000, 6, 1_500_000)
    report = found.report()
    assert report.steal_share == 1
    assert report.cgroup_throttled_s == 2
    assert report.thermal_throttles == 2
    assert report.clock_mhz == ClockRange(min=1500, max=3000)
    assert len(report.flags) == 3


def test_the_commit_is_that_of_the_packages_own_checkout(tmp_path: Path) -> None:
    """Not of a repository that a virtual environment lies in, whoever's that is."""
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not here")

    def run(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run([git, "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    init = tmp_path / "segdeploy/__init__.py"
    installed = tmp_path / "venv/site-packages"
    for file in (init, installed / "segdeploy/__init__.py"):
        file.parent.mkdir(parents=True)
        file.write_text("")
    assert machine._commit(tmp_path) is None  # noqa: SLF001 - no repository yet
    run("init")
    assert machine._commit(tmp_path) is None, "nothing is tracked"  # noqa: SLF001
    run("add", "segdeploy")
    run("commit", "-m", "first")
    clean = machine._commit(tmp_path)  # noqa: SLF001
    assert clean is not None
    assert clean.isalnum()
    assert machine._commit(installed) is None  # noqa: SLF001
    init.write_text("changed = True\n")
    assert machine._commit(tmp_path) == f"{clean}+changes"  # noqa: SLF001


def test_without_git_there_is_a_version_and_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    found = machine.provenance()
    assert found.commit is None
    assert found.version
