"""The whole product in four minutes on two cores: export, prove, time and segment, with the packaged weights.

    python examples/demo.py [FOLDER]

Everything is written into FOLDER (default: demo/).
"""

import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from segdeploy import models, pipeline

EXAMPLES = Path(__file__).parent.resolve() / "nuclei"
RUNS = 20


def demonstrate(name: str) -> dict[str, Any]:
    """One network, from its checkpoint to masks."""
    graph = pipeline.export(name)
    proof = pipeline.parity(name, data=EXAMPLES)
    timed = pipeline.bench(name, data=EXAMPLES, runs=RUNS)["rows"]
    out = Path("masks", name)
    folder = pipeline.infer([str(EXAMPLES / "images")], model=name, out=out, overlay=True)
    return {
        "name": name,
        "size_mb": graph.path.stat().st_size / 1e6,
        "runtime": timed[0]["runtime"],
        "size": f"{graph.spec.height}x{graph.spec.width}",
        "proof": proof,
        "miou": timed[0]["miou"],
        "median_ms": timed[0]["latency_ms"]["median"],
        "images_per_s": folder["images_per_s"],
    }


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    console = Console(width=None if sys.stdout.isatty() else 100)
    table = Table("model", "runtime", "input", "graph MB", "agreement", "mIoU", "ms an image", "folder, images/s")
    passed = True
    for name in models.names():
        console.print(f"{name}: export, proof, timing, {EXAMPLES.name} ...")
        found = demonstrate(name)
        passed &= found["proof"]["passed"]
        agreement = f"{found['proof']['stages'][-1]['agreement']:.4%}"
        numbers = [f"{found[key]:.{digits}f}" for key, digits in (("miou", 4), ("median_ms", 1), ("images_per_s", 1))]
        table.add_row(name, found["runtime"], found["size"], f"{found['size_mb']:.1f}", agreement, *numbers)
    console.print(table)
    console.print(f"Masks: {folder}/masks/MODEL. Photo and mask in one picture: {folder}/masks/MODEL-overlays.")
    console.print(f"Graphs and their proofs: {folder}/export.")
    sys.exit(0 if passed else 4)


if __name__ == "__main__":
    main()
