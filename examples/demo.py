"""The whole product in five minutes on two cores: export, prove, time, segment and report, with the packaged weights.

    python examples/demo.py [FOLDER]

Everything is written into FOLDER (default: demo/).
"""

import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from segdeploy import benchmarking, making, models
from segdeploy.reporting import page
from segdeploy.timing.latency import Effort

EXAMPLES = Path(__file__).parent.resolve() / "nuclei"
EFFORT = Effort(limit_s=15)
ENGINES = ("torch:fp32", "ort:fp32", "ov:fp32", "ort:int8", "ov:int8")


def demonstrate(name: str) -> dict[str, Any]:
    """One network, from its checkpoint to masks."""
    graph = making.export(name)
    proof = making.parity(name, data=EXAMPLES)
    result = benchmarking.run(
        name, engine_names=ENGINES, data=EXAMPLES, effort=EFFORT, save=_result(name), command="python examples/demo.py"
    )
    hosts = [row for row in result["rows"] if row["level"] == "host"]
    timed = min(hosts, key=lambda row: row["latency_ms"]["median"])
    out = Path("masks", name)
    photographs = [str(EXAMPLES / "images")]
    folder = making.infer(photographs, model=name, engine=timed["engine"], out=out, overlay=True)
    return {
        "name": name,
        "size_mb": graph.path.stat().st_size / 1e6,
        "engine": timed["engine"],
        "size": f"{graph.spec.height}x{graph.spec.width}",
        "passed": proof["passed"],
        "agreement": timed["agreement"],
        "miou": timed["miou"],
        "median_ms": timed["latency_ms"]["median"],
        "images_per_s": folder["images_per_s"],
    }


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
        found = demonstrate(name)
        passed &= found["passed"]
        numbers = [f"{found[key]:.{digits}f}" for key, digits in (("miou", 4), ("median_ms", 1), ("images_per_s", 1))]
        agreement = f"{found['agreement']:.2%}"
        table.add_row(name, found["size"], f"{found['size_mb']:.1f}", found["engine"], agreement, *numbers)
    console.print(table)
    console.print(f"Masks: {folder}/masks/MODEL. Photo and mask in one picture: {folder}/masks/MODEL-overlays.")
    page.write([_result(name) for name in models.names()], Path("report.html"))
    console.print(f"Graphs and their proofs: {folder}/export. All engines on one page: {folder}/report.html.")
    sys.exit(0 if passed else 4)


if __name__ == "__main__":
    main()
