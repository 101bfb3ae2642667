"""What `segdeploy bench` finds, as types: the machine, the engines with their files, their times and their masks.

The fields stand in the order in which a result file has them. One that may be None was not measured, or is not known
of another tool; only files of an earlier version may lack it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from segdeploy.certificate import Certificate
from segdeploy.low_precision import Budget, SearchStep
from segdeploy.target import Gpu
from segdeploy.typed_json import Count, Number, Positive, Share

SCHEMA: Final = 4
KIND: Final = "bench"

Pixels = Annotated[str, msgspec.Meta(pattern=r"^(?:/9j/|iVBORw0KGgo)[A-Za-z0-9+/]*={0,2}\Z")]
"""Base64 of a JPEG or a PNG: what a page may put behind `data:image`."""

# The machine


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What was measured on.

    `affinity`: the processors that this process may run on, by number; `cores`: how many of them it may use, inside the
    quota of its container. `instruction_set`: the widest for int8 (`segdeploy.arithmetic`); None of an earlier version.
    """

    processor: str
    instruction_set: str | None = None
    cores: Count
    affinity: tuple[Count, ...] = ()
    memory_mb: Count
    gpu: Gpu | None = None
    system: str
    python: str
    packages: Mapping[str, str]

    @property
    def named(self) -> str:
        """For a caption: processors with one name may differ in their instructions."""
        instructions = "" if self.instruction_set is None else f" ({self.instruction_set})"
        return f"{self.processor}{instructions}, {self.cores} cores"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClockRange:
    """The lower and the higher of the processors' mean clock before and after the measurement, in MHz."""

    min: Number
    max: Number


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """The GPU at the end of the measurement; `throttle_reasons` say what lowered its clock."""

    clock_mhz: Number
    temperature_c: Number
    throttle_reasons: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What disturbed the measurement; `flags` says it in sentences.

    `steal_share` is of the processors' time, taken by other guests of the same host; `others_share` of their capacity,
    taken by other processes here. `cgroup_throttled_s`: how long the container's quota held this one.
    """

    seconds: Number | None = None
    steal_share: Share | None = None
    others_share: Share | None = None
    cgroup_throttled_s: Number | None = None
    thermal_throttles: Number | None = None
    clock_mhz: ClockRange | None = None
    gpu: GpuState | None = None
    flags: tuple[str, ...] = ()


# An engine


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """MiB that an engine takes at most, on the host and on the device; None with its `reason`."""

    host_peak_mb: Number | None = None
    device_peak_mb: Number | None = None
    reason: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """The time of a layer in one call, and its share of the whole; `op` is what the runtime ran for it."""

    layer: str
    op: str
    ms: Number
    share: Share


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How the layers that stay in float32 were found: every graph that was measured, from the file `record`."""

    budget: Budget | None = None
    record: str | None = None
    steps: tuple[SearchStep, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An engine that was timed, its file, and everything measured of it but its times.

    `peer`: it is another tool's. `asked`: the share of the multiply-adds that the graph gives to each type;
    `in_float`: the layers that it leaves in float32, and why. `delivered`, `delivered_share` and `wider` are what the
    runtime computes in (`segdeploy.low_precision.Executed`). `kept`: where the file lies, from the result's own folder.
    """

    id: str
    model: str
    engine: str
    runtime: str | None = None
    precision: str | None = None
    form: str | None = None
    device: str | None = None
    peer: bool = False
    asked: Mapping[str, Share] | None = None
    in_float: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    path: str | None = None
    sha256: str | None = None
    size_mb: Number | None = None
    height: Count | None = None
    width: Count | None = None
    threads: Count | None = None
    classes: tuple[str, ...] = ()
    colours: tuple[tuple[Count, Count, Count], ...] = ()
    random_weights: bool = False
    delivered: str | None = None
    delivered_share: Share | None = None
    wider: tuple[str, ...] = ()
    miou: Share | None = None
    iou_by_class: Mapping[str, Share | None] | None = None
    miou_reason: str | None = None
    agreement: Share | None = None
    agreement_reason: str | None = None
    certificate: Certificate | None = None
    memory: Memory = dataclasses.field(default_factory=Memory)
    search: Search | None = None
    profile: tuple[LayerTime, ...] | None = None
    kept: str | None = None


# Times


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """The 95 % interval of a median. `assumes_independent`: too few calls to see whether neighbours are alike."""

    low: Positive
    high: Positive
    assumes_independent: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Milliseconds of one call: the fastest, the mean, the median, and what 90, 95 and 99 of 100 calls took at most."""

    min: Positive | None = None
    mean: Positive | None = None
    median: Positive
    p90: Positive | None = None
    p95: Positive | None = None
    p99: Positive | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The times of one engine at one level; `median_interval` is that of the median, in ms.

    It is None where the calls were too few. `noisy`: there was none, or it was still too wide, when the time was over.
    """

    runs: Count
    images_per_s: Number
    latency_ms: Latency
    median_interval: Interval | None
    noisy: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The times of a subject at one level and batch size (`Summary`), with what a table shows of the subject."""

    subject: str
    level: str
    batch: Count
    model: str | None = None
    engine: str | None = None
    runtime: str | None = None
    precision: str | None = None
    device: str | None = None
    delivered: str | None = None
    delivered_share: Share | None = None
    wider: tuple[str, ...] = ()
    sha256: str | None = None
    height: Count | None = None
    width: Count | None = None
    threads: Count | None = None
    miou: Share | None = None
    miou_reason: str | None = None
    agreement: Share | None = None
    agreement_reason: str | None = None
    memory: Memory = dataclasses.field(default_factory=Memory)
    runs: Count | None = None
    images_per_s: Number | None = None
    latency_ms: Latency
    median_interval: Interval | None = None
    noisy: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """The time of one task over that of another, run by run: the median, and its interval; None: too few runs."""

    ratio: Positive
    interval: Interval | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RatioToFp32:
    """The time of a low-precision engine over that of fp32 in the same runtime (`Ratio`)."""

    engine: str
    batch: Count
    ratio: Positive
    interval: Interval | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The time of the file at hand over that of the one an earlier result kept; `reason` says why there is none."""

    subject: str
    level: str | None = None
    batch: Count | None = None
    ratio: Positive | None = None
    interval: Interval | None = None
    reason: str | None = None
    comparable: bool = True
    regression: bool = False


class Comparison(msgspec.Struct, frozen=True, kw_only=True, rename={"earlier": "with"}):  # `with` is Python's own
    """What was run again of an earlier result, a file of that name; `max_regression` is a share of its time."""

    earlier: str | None = None
    max_regression: Number | None = None
    rows: tuple[Compared, ...] = ()


# The rest


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """An engine that was left out, and why."""

    engine: str
    reason: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A gate that was not passed, and what to do about it."""

    what: str
    remedy: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DrawnPicture:
    """A photograph with the truth and every subject's mask, made smaller and encoded for a page.

    `masks` and `agreement` (the share of pixels that have PyTorch's class) are by the subject's id.
    """

    name: str
    height: Count
    width: Count
    photo: Pixels
    truth: Pixels | None = None
    masks: Mapping[str, Pixels] = dataclasses.field(default_factory=dict)
    agreement: Mapping[str, Share | None] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A whole result of `segdeploy bench`; `images`: how many the accuracy was measured on, those of `data`."""

    schema: Literal[4] = SCHEMA
    kind: Literal["bench"] = KIND
    made_at: str | None = None
    command: str | None = None
    version: str | None = None
    commit: str | None = None
    machine: Machine | None = None
    conditions: Conditions | None = None
    data: str | None = None
    images: Count | None = None
    skipped: tuple[Skipped, ...] = ()
    subjects: tuple[Subject, ...]
    rows: tuple[Row, ...]
    ratios: tuple[RatioToFp32, ...] = ()
    comparison: Comparison | None = None
    pictures: tuple[DrawnPicture, ...] = ()
    failures: tuple[Failure, ...] = ()
