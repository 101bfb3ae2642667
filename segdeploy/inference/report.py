"""What a run over a folder of images reports: the document that `segdeploy infer --json` prints."""

import dataclasses
from pathlib import Path
from typing import Literal

from segdeploy import cores
from segdeploy.inference import journal
from segdeploy.inference.options import Shard
from segdeploy.spec import Fit, Precision

SCHEMA: Literal[1] = 1
STEPS = ("read", "resize", "engine", "write")


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
    folder: Path | str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineUsed:
    """What segmented the images; `delivered` is the type it really computes in, None where nobody can tell.

    `fit`: how photographs met the network; `own_fit`: how they do in its Spec, for which it was proven.
    """

    model: str
    runtime: str
    device: str
    precision: Precision
    delivered: Precision | None
    fit: Fit
    own_fit: Fit
    random_weights: bool
    file: Path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of every file, how long that took, and what segmented the images.

    `done` counts the images of which everything was written now, `unchanged` those of which an earlier run wrote it,
    `left` those that are still to do: the run was stopped or limited, or only counted. `skipped`: files whose names are
    not those of images or that were excluded, and the masks and overlays that segdeploy wrote. `failed_before`: files
    that an earlier run could not read, and that are the same; they were not tried again. `seconds` is the time that
    passed; `cores` are those of this process, or of the actors of Ray. `shard`: `2/5`, None where all was one run;
    `kept`: the folder of the journal and of this report. The fields of EngineUsed follow `outputs`.
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
    kept: Path | str
    out: Path | str
    outputs: tuple[OutputFolder, ...]
    model: str
    runtime: str
    device: str
    precision: Precision
    delivered: Precision | None
    fit: Fit
    own_fit: Fit
    random_weights: bool
    file: Path


@dataclasses.dataclass(slots=True)
class Summary:
    """What became of every image, filled in while they are segmented."""

    out: Path
    outputs: tuple[OutputFolder, ...]
    shard: Shard
    images: int = 0
    done: int = 0
    unchanged: int = 0
    failed: list[Failure] = dataclasses.field(default_factory=list)
    failed_before: list[Failure] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False
    cores: int = dataclasses.field(default_factory=cores.usable)
    cpu_s: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))
    other_s: float = 0.0  # CPU seconds of files that failed, or that were unchanged

    def give_engine_the_rest(self, process_s: float) -> None:
        """What the process spent and no other step did: runtimes compute in threads of their own."""
        others = sum(spent for step, spent in self.cpu_s.items() if step != "engine")
        self.cpu_s["engine"] = max(self.cpu_s["engine"], process_s - others - self.other_s)

    @property
    def left(self) -> int:
        """Images that are still to do."""
        return self.images - self.done - self.unchanged - len(self.failed) - len(self.failed_before)

    def report(self, used: EngineUsed, *, skipped: int) -> Report:
        """The whole report: `skipped` is the number of other files, which `sources.find` gives."""
        each = {step: 1000 * spent / self.done if self.done else None for step, spent in self.cpu_s.items()}
        return Report(
            done=self.done,
            unchanged=self.unchanged,
            left=self.left,
            skipped=skipped,
            failed=tuple(sorted(self.failed)),
            failed_before=tuple(sorted(self.failed_before)),
            seconds=self.seconds,
            images_per_s=self.done / self.seconds if self.seconds else 0.0,
            cpu_ms_per_image=CpuTime(**each),
            cores=self.cores,
            interrupted=self.interrupted,
            shard=f"{self.shard.index}/{self.shard.count}" if self.shard.count > 1 else None,
            kept=journal.folder(self.out, self.shard),
            out=self.out,
            outputs=self.outputs,
            **{field.name: getattr(used, field.name) for field in dataclasses.fields(used)},
        )
