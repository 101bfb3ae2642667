"""Measure everything the README quotes, in one run, and write benchmarks/cpu.json and benchmarks/cpu.md.

    python benchmarks/run.py --data FOLDER [--out benchmarks]

FOLDER is a labelled folder (images/, masks/, val.txt). The packaged networks are proven, scored and timed on its
validation images; the full-size networks, untrained, are timed at 360x480 against PyTorch.
"""

import argparse
import dataclasses
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import segdeploy
from segdeploy import artifact, benchmarking, models, typed_json
from segdeploy.benchmarking import BenchOptions
from segdeploy.certificate import Certificate
from segdeploy.making import ExportOptions
from segdeploy.timing import machine
from segdeploy.timing.latency import Effort
from segdeploy.timing.result_types import Machine, Row

ENGINES = ("ort:fp32", "torch:fp32")
RUNS = 30
FULL_SIZE_RUNS = 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A network with packaged or random weights: the proof of the packaged ones, and the times of both engines."""

    model: str
    weights: str
    parity: Certificate | None = None
    rows: tuple[Row, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    schema: int = 2
    command: str
    made_at: str
    machine: Machine
    results: tuple[Measured, ...]


def packaged(name: str, data: Path) -> Measured:
    """Parity over all validation images, and both engines timed and scored."""
    segdeploy.export(name)
    proof = segdeploy.parity(name, data=data)
    found = benchmarking.run(name, BenchOptions(engines=ENGINES, data=data, effort=Effort(runs=RUNS)))
    return Measured(model=name, weights="packaged", parity=proof, rows=found.rows)


def full_size(name: str) -> Measured:
    """The network of the paper at 360x480, 21 classes, untrained: latency only."""
    segdeploy.export(name, options=ExportOptions(weights="random"))
    found = benchmarking.run(name, BenchOptions(engines=ENGINES, effort=Effort(runs=FULL_SIZE_RUNS)))
    return Measured(model=name, weights="random", rows=found.rows)


def table(results: Sequence[Measured]) -> str:
    lines = [
        "| model | weights | engine | level | input | median ms | p90 | images/s | mIoU | agreement |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for row in result.rows:
            miou = "-" if row.miou is None else f"{row.miou:.4f}"
            agreement = "-" if row.agreement is None else f"{row.agreement:.4%}"
            lines.append(
                f"| {row.model} | {result.weights} | {row.engine} | {row.level} | {row.height}x{row.width} "
                f"| {row.latency_ms.median:.1f} | {row.latency_ms.p90:.1f} | {row.images_per_s:.1f} "
                f"| {miou} | {agreement} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    data, out = arguments.data.resolve(), arguments.out.resolve()
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        results = [packaged(name, data) for name in models.names()]
        results += [full_size(name) for name in models.names()]
        os.chdir(out)
    command = shlex.join(["python", "benchmarks/run.py", "--data", arguments.data.name])
    here = machine.describe()
    document = Document(command=command, made_at=artifact.now(), machine=here, results=tuple(results))
    artifact.write_atomically(out / "cpu.json", typed_json.to_text(document))
    head = f"`{command}` on {here.named}. Quote ratios within one run.\n\n"
    artifact.write_atomically(out / "cpu.md", (head + table(results)).encode())
    sys.stdout.write(head + table(results))


if __name__ == "__main__":
    main()
