"""What a plan is built for, how it was built, and what it computes."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from segdeploy.errors import InvalidRequestError
from segdeploy.low_precision import Executed
from segdeploy.paths import hold_paths


@dataclasses.dataclass(frozen=True, slots=True)
class BuildOptions:
    """How a plan is compiled.

    `max_batch`, `opt_batch`: the largest batch and the one it is tuned for. `workspace_mb`: scratch memory a layer may
    use; None leaves it to the runtime. `timing_cache`: what the builder measured before; with `pinned` it is only read,
    and a measurement that is not in it is an error. `compute_capability`: of the GPU, such as 8.9; None is this one.
    """

    max_batch: int = 8
    opt_batch: int = 1
    workspace_mb: int | None = None
    timing_cache: Path | None = None
    pinned: bool = False
    compute_capability: str | None = None

    def __post_init__(self) -> None:
        hold_paths(self, "timing_cache")


@dataclasses.dataclass(frozen=True, slots=True)
class Gpu:
    """The first GPU that is visible; `driver` and `cuda` are None where the system does not say."""

    name: str
    compute_capability: str  # "8.9"
    memory_mb: int
    driver: str | None
    cuda: str | None = None  # of the driver: "13.0"


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """The GPU that a plan is for: a compute capability, such as 8.9.

    `gpu`, `driver` and `cuda` are of the GPU that it was built on, where that one can load it; None where the plan was
    built on a machine without such a GPU.
    """

    compute_capability: str
    gpu: str | None = None
    driver: str | None = None
    cuda: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d{1,2}\.\d", self.compute_capability):
            raise InvalidRequestError(f"{self.compute_capability!r} is no compute capability.", "Give one such as 8.9.")

    @classmethod
    def of(cls, gpu: Gpu) -> Self:
        return cls(gpu.compute_capability, gpu.name, gpu.driver, gpu.cuda)

    @property
    def suffix(self) -> str:
        """`cc89`: how a plan's name ends, before `.plan`."""
        return f"cc{self.compute_capability.replace('.', '')}"

    @classmethod
    def parse(cls, suffix: str) -> Self:
        """`cc89` -> compute capability 8.9. Raise InvalidRequestError for anything else."""
        digits = suffix.removeprefix("cc")
        if digits == suffix or not re.fullmatch(r"\d{2,3}", digits):
            raise InvalidRequestError(f"{suffix!r} names no compute capability.", "It is such as cc89.")
        return cls(f"{digits[:-1]}.{digits[-1]}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TypedNetwork:
    """What the parser made of a graph: the share of the work, and the number of tensors, of each type."""

    work: Mapping[str, float]
    tensors: Mapping[str, int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlanFacts:
    """What runs a plan, what it is for, how it was built and what it computes; `size` in bytes.

    `asked`: the share of the work that the graph gives to each type.
    """

    runtime: str
    runtime_version: str
    system: str
    target: Target
    size: int
    options: BuildOptions
    timing_cache_sha256: str | None
    calibration_sha256: str | None
    asked: Mapping[str, float]
    typed: TypedNetwork
    executed: Executed
