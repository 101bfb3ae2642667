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

    `done` counts the images of which everything was written now, `unchanged` those of which an earlier run wrote it,
    `left` those that are still to do: the run was stopped or limited, or only counted. `skipped`: files whose names are
    not those of images or that were excluded, and the masks and overlays that segdeploy wrote. `failed_before`: files
    that an earlier run could not read, and that are the same; they were not tried again. `seconds` is the time that
    passed; `cores` are those this process may use. `shard`: `2/5`, None where all was one run; `kept`: the folder of
    the journal and of this report. The fields of EngineUsed follow `outputs`.
    """

    schema: Literal[1] = SCHEMA
    done: int
    unchanged: int
    left: int
    skipped: int
    failed: tuple[Failure, ...]
    failed_before: tuple[Failure, ...]
    seconds: float
    images_per_s: float
    cpu_ms_per_image: CpuTime
    cores: int
    interrupted: bool
    shard: str | None
    kept: Path
    out: Path
    outputs: tuple[OutputFolder, ...]
    model: str
    runtime: str
    device: str
    precision: Precision
    delivered: Precision | None
    random_weights: bool
    file: Path
