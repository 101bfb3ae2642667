"""How many cores this process may use: those of its affinity mask, inside the CPU quota of its container."""

import functools
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def usable() -> int:
    """At least 1. Where the quota is 1.5 cores, 2: one thread alone would leave a third of it."""
    quotas = [len(affinity()), *map(math.ceil, _quotas())]
    return max(1, min(quotas))


def affinity() -> list[int]:
    """The processors this process may run on, by number."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@functools.cache
def limit_torch() -> None:
    """Let PyTorch use no more threads than `usable`, once: it counts the affinity mask alone."""
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), usable()))


def _quotas() -> Iterator[float]:
    """In cores: of our control group and of every group above it, in version 2 and in version 1."""
    for line in (_read(PROC / "self/cgroup") or "").splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            yield from filter(None, map(_second_version, _upward(CGROUP, group)))
        elif "cpu" in controllers.split(","):
            yield from filter(None, map(_first_version, _upward(CGROUP / "cpu", group)))


def _upward(mounted: Path, group: str) -> list[Path]:
    """The folder of a group and those above it. A container may see none of them but the one that it is mounted on."""
    steps = [step for step in PurePosixPath(group).parts if step not in {"/", ".."}]
    return [mounted.joinpath(*steps[:depth]) for depth in range(len(steps), -1, -1)]


def _second_version(group: Path) -> float | None:
    found = re.fullmatch(r"(\d+) ([1-9]\d*)", (_read(group / "cpu.max") or "").strip())
    return None if found is None else int(found[1]) / int(found[2])


def _first_version(group: Path) -> float | None:
    quota, period = (_read(group / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
    if not re.fullmatch(r"\d+\s*", quota) or not re.fullmatch(r"[1-9]\d*\s*", period):
        return None  # -1: no quota
    return int(quota) / int(period)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
