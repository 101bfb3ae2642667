"""The whole product in five minutes on two cores: export, prove, time, segment and report, with the packaged weights.

    python examples/demo.py [FOLDER]

Everything is written into FOLDER (default: demo/).
"""

import dataclasses
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

import segdeploy
from segdeploy import models
from segdeploy.artifact import Artifact
from segdeploy.timing.result_types import Row

EXAMPLES = Path(__file__).parent.resolve() / "nuclei"
EFFORT = segdeploy.Effort(limit_s=15)
ENGINES = ("torch:fp32", "ort:fp32", "ov:fp32", "ort:int8", "ov:int8")


@dataclasses.dataclass(frozen=True, slots=True)
class Shown:
    """What the table says of a network: its size, and how the engine does that was fastest from memory."""

    graph: Artifact
    passed: bool
    fastest: Row
    images_per_s: float

    def cells(self) -> list[str]:
        row, spec = self.fastest, self.graph.spec
        agreement = "-" if row.agreement is None else f"{row.agreement:.2%}"
        miou = "-" if row.miou is None else f"{row.miou:.4f}"
        size_mb = f"{self.graph.path.stat().st_size / 1e6:.1f}"
        speed = [f"{row.latency_ms.median:.1f}", f"{self.images_per_s:.1f}"]
        return [spec.model, f"{spec.height}x{spec.width}", size_mb, str(row.engine), agreement, miou, *speed]


def demonstrate(name: str) -> Shown:
    """One network, from its checkpoint to masks."""
    (graph,) = segdeploy.export(name)
    certificate = segdeploy.parity(name, data=EXAMPLES)
    options = segdeploy.BenchOptions(
        engines=ENGINES, data=EXAMPLES, effort=EFFORT, save=_result(name), command="python examples/demo.py"
    )
    rows = segdeploy.bench(name, options=options).rows
    fastest = min((row for row in rows if row.level == "host"), key=lambda row: row.latency_ms.median)
    out = Path("masks", name)
    photographs = EXAMPLES / "images"
    everything = segdeploy.FolderOptions(again=True)  # a second demo is timed as the first
    report = segdeploy.infer(
        photographs, model=name, engine=str(fastest.engine), out=out, write=["mask", "overlay"], folder=everything
    )
    return Shown(graph, certificate.passed, fastest, report.images_per_s)


def _result(name: str) -> Path:
    return Path("results", f"{name}.json")


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    console = Console(width=None if sys.stdout.isatty() else 100)
    table = Table("model", "input", "fp32 MB", "fastest engine", "agreement", "mIoU", "ms", "folder, images/s")
    passed = True
    for name in models.names():
        console.print(f"{name}: export, proof, timing, {EXAMPLES.name} ...")
        shown = demonstrate(name)
        passed &= shown.passed
        table.add_row(*shown.cells())
    console.print(table)
    console.print(f"Masks: {folder}/masks/MODEL. Photo and mask in one picture: {folder}/masks/MODEL-overlays.")
    segdeploy.report([_result(name) for name in models.names()], out="report.html")
    console.print(f"Graphs and their proofs: {folder}/export. All engines on one page: {folder}/report.html.")
    sys.exit(0 if passed else 4)


if __name__ == "__main__":
    main()
