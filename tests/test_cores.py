"""The cores of a container are those of its quota: as many threads as the host has cores would wait for each other."""

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import segdeploy
from segdeploy import cores
from segdeploy.engines import RunOptions

Write = Callable[[str, str], None]
COUNTING = {"sched_getaffinity", "cpu_count", "process_cpu_count"}
TORCH = """
import os, torch
from segdeploy import cores, models
from segdeploy.spec import Spec

torch.set_num_threads(4)
cores.usable = lambda: 3
spec = Spec("unet", {"multiplier": 0.0625}, ("a", "b"), ((0, 0, 0), (1, 1, 1)), 32, 32)
models.deployed(models.rebuild(spec), spec)
limited = torch.get_num_threads()
torch.set_num_threads(5)
models.deployed(models.rebuild(spec), spec)
print(limited, torch.get_num_threads())
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """A kernel that says what a test writes, on a machine of eight cores."""
    monkeypatch.setattr(cores, "PROC", tmp_path / "proc")
    monkeypatch.setattr(cores, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(cores, "affinity", lambda: list(range(8)))

    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    return write


@pytest.mark.parametrize(
    "quota,expected",
    [
        ("max 100000", 8),
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("150000 100000", 2),
        ("300000 100000", 3),
        ("20000 10000", 2),
        ("1600000 100000", 8),
        ("", 8),
        ("nonsense", 8),
        ("100000 0", 8),
        ("0 100000", 8),
    ],
)
@pytest.mark.parametrize("group", ["/", "/mine", "/../.."])
def test_the_quota_of_version_2_counts(write: Write, group: str, quota: str, expected: int) -> None:
    write("proc/self/cgroup", f"0::{group}\n")
    write(f"cgroup/{'mine/' if group == '/mine' else ''}cpu.max", f"{quota}\n")
    assert cores.usable() == expected


@pytest.mark.parametrize("quota,period,expected", [("-1", "100000", 8), ("150000", "100000", 2), ("5000", "50000", 1)])
@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
def test_the_quota_of_version_1_counts(write: Write, controllers: str, quota: str, period: str, expected: int) -> None:
    """Beside an empty version 2, as systems that have both show it."""
    write("proc/self/cgroup", f"5:cpuset:/\n2:{controllers}:/docker/0123\n0::/\n")
    write("cgroup/cpu/docker/0123/cpu.cfs_quota_us", f"{quota}\n")
    write("cgroup/cpu/docker/0123/cpu.cfs_period_us", f"{period}\n")
    assert cores.usable() == expected


def test_a_container_sees_its_own_group_at_the_top(write: Write) -> None:
    """/proc names the group as the host does; what is mounted begins at the container's."""
    write("proc/self/cgroup", "2:cpu,cpuacct:/docker/0123\n")
    write("cgroup/cpu/cpu.cfs_quota_us", "200000\n")
    write("cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert cores.usable() == 2


def test_the_narrowest_group_above_counts(write: Write) -> None:
    """A pod's quota holds all its containers, which need none of their own."""
    write("proc/self/cgroup", "0::/pod/container/ours\n")
    write("cgroup/pod/cpu.max", "200000 100000\n")
    write("cgroup/pod/container/cpu.max", "max 100000\n")
    write("cgroup/pod/container/ours/cpu.max", "400000 100000\n")
    assert cores.usable() == 2


def test_the_affinity_counts_where_it_is_narrower(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("proc/self/cgroup", "0::/\n")
    write("cgroup/cpu.max", "400000 100000\n")
    monkeypatch.setattr(cores, "affinity", lambda: [5, 6])
    assert cores.usable() == 2


def test_a_system_without_control_groups_has_its_affinity(write: Write) -> None:
    write("elsewhere", "")
    assert cores.usable() == 8


def test_the_affinity_is_that_of_this_process() -> None:
    assert cores.affinity() == sorted(os.sched_getaffinity(0))
    assert 1 <= cores.usable() <= len(cores.affinity())


def test_cores_are_counted_in_one_place() -> None:
    """Whoever counts for himself forgets the quota."""
    root = Path(segdeploy.__file__).parent
    found = {
        f"{path.relative_to(root)}:{node.lineno}"
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in COUNTING
    }
    assert {where.partition(":")[0] for where in found} == {"cores.py"}


@pytest.mark.usefixtures("workspace")
def test_engines_take_as_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    from segdeploy.engines import ort, ov

    monkeypatch.setattr(cores, "usable", lambda: 3)
    assert ort._settings(ort.import_runtime(), RunOptions(), optimised=True).intra_op_num_threads == 3  # noqa: SLF001
    assert ov._settings(RunOptions())["INFERENCE_NUM_THREADS"] == 3  # noqa: SLF001


def test_pytorch_takes_no_more_threads_unless_it_is_told_to() -> None:
    """It counts the affinity mask alone. What is set afterwards (`train --threads`) holds."""
    done = subprocess.run([sys.executable, "-c", TORCH], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "5"]
