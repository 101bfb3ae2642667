"""OpenVINO's own benchmark_app on a graph of ours: images a second with the throughput hint.

python benchmarks/peers/openvino_benchmark_app.py GRAPH.onnx BATCH HEIGHT WIDTH SECONDS
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

APP = Path(sys.executable).with_name("benchmark_app")


def images_per_s(graph: str, batch: int, height: int, width: int, seconds: float) -> float:
    """In float32 where the graph leaves it: the default may be bfloat16. The batch is fixed, as its users fix it."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["-hint", "throughput", "-infer_precision", "f32", "-shape", f"[{batch},{height},{width},3]"]
        report = ["-json_stats", "-report_type", "no_counters", "-report_folder", folder]
        subprocess.run(
            [APP, "-m", graph, "-d", "CPU", *options, "-t", str(max(1, round(seconds))), *report],
            check=True,
            capture_output=True,
        )
        found = json.loads(Path(folder, "benchmark_report.json").read_text())
    return float(found["execution_results"]["throughput"])


if __name__ == "__main__":
    graph, *numbers = sys.argv[1:]
    batch, height, width, seconds = (int(number) for number in numbers)
    print(images_per_s(graph, batch, height, width, seconds))
