"""What a run over a folder of images reports: the document that `segdeploy infer --json` prints."""

import dataclasses
from pathlib import Path
from typing import Literal

from segdeploy.spec import Precision

SCHEMA: Literal[1] = 1


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Failure:
    """An image of which not everything was written, and why: one line that names it."""

    path: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class CpuTime:
    """Milliseconds of CPU time that each step took, on average of the images that were done; None where none was."""

    read: float | None
    resize: float | None
    engine: float | None
    write: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class OutputFolder:
    """A kind of output that was asked for, and the folder of its files."""

    kind: str
    folder: Path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineUsed:
    """What segmented the images; `delivered` is the type it really computes in, None where nobody can tell."""

    model: str
    runtime: str
    device: str
    precision: Precision
    delivered: Precision | None
    random_weights: bool
    file: Path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of every file, how long that took, and what segmented the images.

    `done` counts the images of which everything was written, `skipped` the files whose names are not those of images,
    and the masks and overlays that segdeploy wrote. `seconds` is the time that passed; `cores` are those this process
    may use. The fields of EngineUsed follow `outputs`.
    """

    schema: Literal[1] = SCHEMA
    done: int
    skipped: int
    failed: tuple[Failure, ...]
    seconds: float
    images_per_s: float
    cpu_ms_per_image: CpuTime
    cores: int
    interrupted: bool
    out: Path
    outputs: tuple[OutputFolder, ...]
    model: str
    runtime: str
    device: str
    precision: Precision
    delivered: Precision | None
    random_weights: bool
    file: Path
