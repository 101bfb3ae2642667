"""Measure everything the README quotes, in one run, and write benchmarks/cpu.json and benchmarks/cpu.md.

    python benchmarks/run.py --data FOLDER [--out benchmarks]

FOLDER is a labelled folder (images/, masks/, val.txt). The packaged networks are proven, scored and timed on its
validation images; the full-size networks, untrained, are timed at 360x480 against PyTorch.
"""

import argparse
import json
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from segdeploy import artifact, benchmarking, making, models
from segdeploy.timing import machine
from segdeploy.timing.latency import Effort

ENGINES = ("ort:fp32", "torch:fp32")
RUNS = 30
FULL_SIZE_RUNS = 10
SCHEMA = 1


def packaged(name: str, data: Path) -> dict[str, Any]:
    """Parity over all validation images, and both engines timed and scored."""
    making.export(name)
    proof = making.parity(name, data=data)
    rows = benchmarking.run(name, engine_names=ENGINES, data=data, effort=Effort(runs=RUNS))["rows"]
    return {"model": name, "weights": "packaged", "parity": proof, "rows": rows}


def full_size(name: str) -> dict[str, Any]:
    """The network of the paper at 360x480, 21 classes, untrained: latency only."""
    making.export(name, weights="random")
    rows = benchmarking.run(name, engine_names=ENGINES, effort=Effort(runs=FULL_SIZE_RUNS))["rows"]
    return {"model": name, "weights": "random", "rows": rows}


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| model | weights | engine | level | input | median ms | p90 | images/s | mIoU | agreement |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for row in result["rows"]:
            ms = row["latency_ms"]
            miou = "-" if row["miou"] is None else f"{row['miou']:.4f}"
            agreement = "-" if row["agreement"] is None else f"{row['agreement']:.4%}"
            lines.append(
                f"| {row['model']} | {result['weights']} | {row['runtime']}:{row['precision']} | {row['level']} "
                f"| {row['height']}x{row['width']} | {ms['median']:.1f} | {ms['p90']:.1f} | {row['images_per_s']:.1f} "
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
    facts = machine.describe()
    document = {"schema": SCHEMA, "command": command, "made_at": artifact.now(), "machine": facts, "results": results}
    artifact.write_atomically(out / "cpu.json", (json.dumps(document, indent=1) + "\n").encode())
    head = f"`{command}` on {facts['processor']}, {facts['cores']} cores. Quote ratios within one run.\n\n"
    artifact.write_atomically(out / "cpu.md", (head + table(results)).encode())
    sys.stdout.write(head + table(results))


if __name__ == "__main__":
    main()
