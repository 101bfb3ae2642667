"""What `infer` prints of a run over a folder."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from segdeploy.cli import rendering
from segdeploy.paths import shown

if TYPE_CHECKING:
    from segdeploy.inference.report import Report

_STEPS = {  # what it is, and what would shorten it
    "read": "reading: --decode scaled, or smaller files.",
    "resize": "resizing: --decode scaled, or smaller files.",
    "engine": "the engine: a lower precision (segdeploy bench), a GPU, or more cores.",
    "write": "writing: fewer kinds after --write, or more cores.",
}


def lines(report: "Report") -> Iterator[str]:
    """What became of the files, what made the masks and how fast, and what would make it faster."""
    skipped = f"{report.skipped} skipped (no images, excluded, or written by segdeploy)"
    counts = [f"{report.done} done"]
    counts += [f"{report.unchanged} unchanged"] * bool(report.unchanged)
    counts += [f"{report.left} left to do"] * bool(report.left)
    counts += [f"{len(report.failed)} failed"]
    counts += [f"{len(report.failed_before)} failed before"] * bool(report.failed_before)
    yield f"{', '.join(counts)}, {skipped}; masks in {shown(report.out)}"
    if report.failed_before:
        listed = shown(f"{report.kept}/failed.jsonl")
        yield f"What failed before are the same files: {listed}; --retry-failed tries them"
    if not report.done:
        return
    untrained = " (RANDOM weights: the masks mean nothing)" if report.random_weights else ""
    engine = f"{report.model}{untrained} in {report.runtime}:{report.precision} on {report.device}"
    yield f"{engine}, {report.seconds:.1f} s, {_rate(report.images_per_s)}"
    yield from rendering.other_fit(report.fit, report.own_fit)
    split = ", ".join(f"{step} {ms:.1f}" for step, ms in dataclasses.asdict(report.cpu_ms_per_image).items())
    yield f"CPU ms per image: {split}; {report.cores} cores. {_held_back(report)}"


def _held_back(report: "Report") -> str:
    """Which step took most of the time, and what would shorten it."""
    spent = {step: ms or 0.0 for step, ms in dataclasses.asdict(report.cpu_ms_per_image).items()}
    most, total = max(spent, key=lambda step: spent[step]), sum(spent.values())
    share = f"Most of it ({spent[most] / total:.0%})" if total else "Most of it"
    return f"{share} is {_STEPS[most]}"


def _rate(images_per_s: float) -> str:
    """Of huge images, the other way round."""
    return (
        f"{images_per_s:.1f} images/s"
        if images_per_s >= 1 or not images_per_s
        else f"{1 / images_per_s:.1f} s an image"
    )
