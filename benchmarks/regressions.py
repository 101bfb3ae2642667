"""Does `bench --compare` catch a planted slowdown, and is it silent without one? Writes benchmarks/regressions.*.

    python benchmarks/regressions.py [--repetitions 20] [--slowdown 10] [--work DIR]

The packaged U-Net in ONNX Runtime is timed and kept once. Each repetition is a whole `bench --compare` with its default
options: once as it is, and once with an engine that works on for a share of the time that each of its calls took.
Caught is a repetition in which some level is a regression.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from numpy.typing import NDArray

from segdeploy import artifact, benchmarking, engines, typed_json
from segdeploy.artifact import Artifact
from segdeploy.benchmarking import BenchOptions
from segdeploy.engines import Engine
from segdeploy.timing import machine
from segdeploy.timing.result_types import Machine

HERE = Path(__file__).resolve().parent
ENGINE = "ort:fp32"
KEPT = Path("kept.json")


@contextmanager
def slowed(share: float) -> Iterator[None]:
    """Every engine but those that were kept works longer by a share of each call's own time."""
    honest = engines.open_engine

    def opened(file: Artifact, **others: Any) -> Engine:  # noqa: ANN401 - what bench gives it
        engine = honest(file, **others)
        if f"{KEPT}.files" not in str(file.path):
            classify = engine.classify

            def slowly(*batch: NDArray[Any]) -> NDArray[Any]:
                started = time.perf_counter()
                found = classify(*batch)
                until = started + (1 + share) * (time.perf_counter() - started)
                while time.perf_counter() < until:
                    pass
                return found

            engine.classify = slowly  # type: ignore[method-assign,assignment]
        return engine

    with mock.patch.object(engines, "open_engine", opened):
        yield


def repetition(share: float) -> dict[str, Any]:
    with slowed(share):
        report = benchmarking.run("unet", BenchOptions(engines=[ENGINE], compare=KEPT))
    rows = report.comparison.rows if report.comparison else ()
    found = {
        "slowdown": share,
        "caught": bool(report.failures),
        "runs": report.rows[0].runs,
        "flags": report.conditions.flags if report.conditions else (),
        "levels": {row.level: {"ratio": row.ratio, "interval": typed_json.to_builtins(row.interval)} for row in rows},
    }
    sys.stdout.write(f"{json.dumps(found)}\n")
    sys.stdout.flush()
    return found


def page(document: dict[str, Any]) -> str:
    measured_on = typed_json.convert(document["machine"], Machine, where="machine", remedy="", partial=True)
    where = f"`{document['command']}` on {measured_on.named}."
    what = (
        f"The packaged U-Net in {ENGINE}, `bench --compare` with its defaults: a regression is an interval above 1.05."
    )
    columns = ["planted", "repetitions", "caught", "ratio, host", "ratio, image to mask", "runs of each"]
    lines = ["# Regressions", "", f"{where} {what}", "Ratios: lowest, median, highest.", ""]
    lines += [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    for share in (0.0, document["slowdown"]):
        members = [each for each in document["repetitions"] if each["slowdown"] == share]
        spread = [_spread([each["levels"][level]["ratio"] for each in members]) for level in ("host", "image_to_mask")]
        runs = sorted(each["runs"] for each in members)
        caught = sum(each["caught"] for each in members)
        lines.append(f"| {share:.0%} | {len(members)} | {caught} | {' | '.join(spread)} | {runs[0]} to {runs[-1]} |")
    return "\n".join([*lines, ""])


def _spread(values: list[float]) -> str:
    ordered = sorted(values)
    return f"{ordered[0]:.3f}, {ordered[len(ordered) // 2]:.3f}, {ordered[-1]:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--slowdown", type=float, default=10, help="per cent")
    parser.add_argument("--work", type=Path, default=Path("build/regressions"))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    os.chdir(given.work)
    benchmarking.run("unet", BenchOptions(engines=[ENGINE], save=KEPT))
    document: dict[str, Any] = {
        "schema": 2,
        "command": shlex.join(["python", "benchmarks/regressions.py", "--repetitions", str(given.repetitions)]),
        "made_at": artifact.now(),
        "machine": typed_json.to_builtins(machine.describe()),
        "slowdown": given.slowdown / 100,
        "repetitions": [],
    }
    for _ in range(given.repetitions):
        document["repetitions"] += [repetition(share) for share in (0.0, document["slowdown"])]
        artifact.write_atomically(HERE / "regressions.json", (json.dumps(document, indent=1) + "\n").encode())
        artifact.write_atomically(HERE / "regressions.md", page(document).encode())


if __name__ == "__main__":
    main()
