"""What peers.py measures, as types: the samples of every round, the scores, and the tables that are made of them."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, TypeVar

import numpy as np

from segdeploy import typed_json
from segdeploy.spec import Precision
from segdeploy.timing import contest, latency
from segdeploy.timing.result_types import Interval, Machine, Row, Subject

OURS = "segdeploy"
PYTORCH = "PyTorch, fp32"
LEVELS = ("host", "image_to_mask")
PROTOCOL: Final = 2
PROTOCOLS = {
    1: "Measured while the peers took turns forth and back, read and wrote with one thread and compressed PNG with\n"
    "Pillow's default: from image file to mask that favours segdeploy.",
    2: "All take turns in random order, read and write with a thread for each core, and compress PNG alike.",
}
AGAIN = "Measure it again: python benchmarks/peers.py"
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """The milliseconds of one tool in every round; `agreement`: of its masks with those of PyTorch eager."""

    model: str
    precision: Precision
    batch: int
    level: str
    tool: str
    agreement: float
    samples_ms: tuple[float, ...]

    @property
    def subject(self) -> str:
        return f"{self.model} {self.precision} {self.tool}"

    @property
    def place(self) -> tuple[str, ...]:
        return self.model, str(self.precision), str(self.batch), self.level, self.tool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PeerRatio:
    """The time of segdeploy over that of another tool, round by round."""

    model: str
    precision: Precision
    batch: int
    level: str
    peer: str
    ratio: float
    interval: Interval | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SpeedRounds:
    """Everything that was timed: peers_speed.json, which `segdeploy report` reads, is made of it.

    `protocol`: how the peers were run (`PROTOCOLS`).
    """

    schema: Literal[2] = 2
    protocol: Literal[1, 2] = PROTOCOL
    command: str
    made_at: str
    machine: Machine
    rounds: tuple[Rounds, ...]
    ratios: tuple[PeerRatio, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """mIoU of a tool with a packaged network, and the share of pixels to which it gives PyTorch's class."""

    network: str
    tool: str
    miou: float
    agreement: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    schema: Literal[2] = 2
    kind: Literal["accuracy"] = "accuracy"
    command: str
    made_at: str
    machine: Machine
    rows: tuple[Score, ...]


def read(path: Path, kind: type[T]) -> T | None:
    """What an earlier call wrote; None where there is nothing."""
    if not path.is_file():
        return None
    document = typed_json.parse(path.read_bytes(), where=str(path), remedy=AGAIN)
    return typed_json.convert(document, kind, where=str(path), remedy=AGAIN, partial=True)


def is_like(machine: Machine, other: Machine | None) -> bool:
    """Whether numbers of both machines may stand in one table."""
    return other is not None and (machine.named, machine.packages) == (
        other.named,
        other.packages,
    )


def merged(found: Sequence[T], earlier: Sequence[T], key: Callable[[T], tuple[str, ...]]) -> tuple[T, ...]:
    """What was measured now, and what an earlier call measured besides, in the order of the key."""
    fresh = {key(each) for each in found}
    return tuple(sorted([*found, *(each for each in earlier if key(each) not in fresh)], key=key))


def rows(rounds: Sequence[Rounds], subjects: Sequence[Subject]) -> Iterator[Row]:
    """A row of a result for each tool and level."""
    by_id = {subject.id: subject for subject in subjects}
    for each in rounds:
        row = contest.row(by_id[each.subject], each.level, each.samples_ms, batch=each.batch)
        yield dataclasses.replace(row, agreement=each.agreement)


def ratios(rounds: Sequence[Rounds]) -> Iterator[PeerRatio]:
    for (model, precision, batch, level), members in itertools.groupby(rounds, key=_contest_of):
        each = {member.tool: member.samples_ms for member in members}
        ours = each.pop(OURS)
        for peer, theirs in each.items():
            found = latency.ratio(ours, theirs)
            yield PeerRatio(
                model=model,
                precision=precision,
                batch=batch,
                level=level,
                peer=peer,
                ratio=found.ratio,
                interval=found.interval,
            )


def _contest_of(rounds: Rounds) -> tuple[str, Precision, int, str]:
    return rounds.model, rounds.precision, rounds.batch, rounds.level


def speed_page(found: SpeedRounds, precisions: Sequence[Precision]) -> str:
    """A table for each precision and level: medians, and under each peer the ratio with its interval."""
    told = [
        "Medians in ms for the whole batch; in brackets segdeploy's time over the peer's, round by round, with its",
        "95 % interval if rounds are independent: below 1, segdeploy is ahead. The networks are untrained, so the",
        "last table, of pixels that agree with PyTorch eager's masks, says that fp32 is the same network in all of",
        "them; what int8 costs is in `peers_accuracy.md`, with trained ones.",
        "",
        PROTOCOLS[found.protocol],
    ]
    lines = [_head("speed", found.command, found.machine), *told, ""]
    for precision, level in itertools.product(precisions, reversed(LEVELS)):
        members = [each for each in found.rounds if (each.precision, each.level) == (precision, level)]
        beside = {
            (each.model, each.batch, each.peer): each
            for each in found.ratios
            if (each.precision, each.level) == (precision, level)
        }
        lines += _table(f"{precision}, {level.replace('_', ' ')}", members, functools.partial(_cell, ratios=beside))
    fp32 = [each for each in found.rounds if (each.precision, each.level) == (Precision.FP32, "host")]
    return "\n".join([*lines, *_table("fp32, agreement", fp32, lambda each: f"{each.agreement:.3%}")])


def _table(title: str, rounds: Sequence[Rounds], cell: Callable[[Rounds], str]) -> list[str]:
    tools = sorted({each.tool for each in rounds}, key=lambda tool: (tool == OURS, tool))
    lines = [f"## {title}", "", f"| network | batch | {' | '.join(tools)} |"]
    lines.append(f"| --- | --- | {' | '.join('---' for _ in tools)} |")
    for (model, batch), members in itertools.groupby(rounds, key=lambda each: (each.model, each.batch)):
        cells = {each.tool: cell(each) for each in members}
        lines.append(f"| {model} | {batch} | {' | '.join(cells.get(tool, '-') for tool in tools)} |")
    return [*lines, ""]


def _cell(rounds: Rounds, ratios: Mapping[tuple[str, int, str], PeerRatio]) -> str:
    median = f"{float(np.median(rounds.samples_ms)):.4g}"
    ratio = ratios.get((rounds.model, rounds.batch, rounds.tool))
    if ratio is None:
        return f"**{median}**"
    return f"{median} ({ratio.ratio:.3f}; {_bounds(ratio.interval)})"


def _bounds(interval: Interval | None) -> str:
    return "too few rounds" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"


def accuracy_page(found: Accuracy) -> str:
    lines = [
        _head("accuracy", found.command, found.machine),
        "| network | tool | mIoU | points against PyTorch | agreement |",
        "|---|---|---|---|---|",
    ]
    reference = {row.network: row.miou for row in found.rows if row.tool == PYTORCH}
    for row in found.rows:
        change = 100 * (row.miou - reference[row.network])
        lines.append(f"| {row.network} | {row.tool} | {row.miou:.4f} | {change:+.3f} | {row.agreement:.3%} |")
    return "\n".join([*lines, ""])


def _head(what: str, command: str, machine: Machine) -> str:
    return f"# Peers: {what}\n\n`{command}` on {machine.named}.\n"
