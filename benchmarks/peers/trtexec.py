"""TensorRT's own trtexec on a graph of ours: the network alone, median and p99 in ms, and images a second.

    python benchmarks/peers/trtexec.py GRAPH.onnx BATCH HEIGHT WIDTH SECONDS

The types of the graph are those of the plan (TensorRT 11 knows no other way). CUDA graphs are on, as in our own engine.
Never run yet: its output is read as NVIDIA documents it.
"""

import re
import subprocess
import sys


def measured(graph: str, batch: int, height: int, width: int, seconds: int) -> tuple[float, float, float]:
    shape = f"images:{batch}x{height}x{width}x3"
    command = ["trtexec", f"--onnx={graph}", f"--shapes={shape}", f"--duration={seconds}", "--useCudaGraph"]
    typed = [] if _is_always_typed() else ["--stronglyTyped"]
    done = subprocess.run([*command, *typed], check=True, capture_output=True, text=True)
    return parsed(done.stdout, batch)


def _is_always_typed() -> bool:
    command = ["trtexec", "--help"]
    return "--stronglyTyped" not in subprocess.run(command, check=False, capture_output=True, text=True).stdout


def parsed(log: str, batch: int) -> tuple[float, float, float]:
    """From what trtexec prints."""
    compute = re.search(r"GPU Compute Time:.*?median = ([\d.]+) ms.*?percentile\(99%\) = ([\d.]+) ms", log)
    queries = re.search(r"Throughput: ([\d.]+) qps", log)
    if compute is None or queries is None:
        raise ValueError("trtexec printed no times")
    return float(compute[1]), float(compute[2]), batch * float(queries[1])


if __name__ == "__main__":
    graph, *numbers = sys.argv[1:]
    batch, height, width, seconds = (int(number) for number in numbers)
    print(*measured(graph, batch, height, width, seconds))
