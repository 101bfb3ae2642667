"""Measure the engines against the tools people would use instead; writes benchmarks/engines_NAME.json and .md.

    python benchmarks/engines.py throughput [--network NAME] [--precision int8] [--rounds 4] [--work DIR]
    python benchmarks/engines.py image-to-mask [--network NAME] [--precision int8] [--rounds 6] [--work DIR]

The four networks at full size (360x480, 21 classes, untrained), batch 1 and 8, fp32 and int8. `throughput`: images a
second of `ov` with several batches in flight (`submit`, `collect`) and of OpenVINO's benchmark_app on the same graph.
`image-to-mask`: from image file to encoded mask, `ov` and `ort` against plain ONNX Runtime on the logits with NumPy and
Pillow (peers/onnxruntime_numpy.py); its int8 is `quantize_static` as it comes. Every competitor is a process of its
own; they take turns, round by round, and ratios are taken within a round. With --network and --precision, only
those are measured anew, and the other rows stay. Graphs are made in DIR.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _graphs import full_size
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from PIL import Image

from segdeploy import artifact, checkpoint, engines, images, models, pipeline
from segdeploy.benchmarks import latency, machine
from segdeploy.engines import RunOptions
from segdeploy.export._graph import Graph
from segdeploy.export.to_onnx import to_graph
from segdeploy.spec import Precision, Spec

SCHEMA = 1
HERE = Path(__file__).resolve().parent
PLAIN, BENCHMARK_APP = HERE / "peers" / "onnxruntime_numpy.py", HERE / "peers" / "openvino_benchmark_app.py"
PRECISIONS = (Precision.FP32, Precision.INT8)
BATCHES = (1, 8)
SHORTEST_S, BATCHES_A_ROUND = 5, 4
PHOTOGRAPHS = 8


@contextlib.contextmanager
def competitor(*command: str | Path) -> Iterator[Callable[[str], float]]:
    """A process that answers every line with a number; it is warm when the block begins."""
    with subprocess.Popen(
        [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        asked, answers = process.stdin, process.stdout
        if asked is None or answers is None:
            raise OSError(command)

        def ask(line: str = "") -> float:
            print(line, file=asked, flush=True)
            return float(answers.readline())

        ask("0")
        try:
            yield ask
        finally:
            asked.close()


def answer_of(*command: str | Path) -> float:
    done = subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True)
    return float(done.stdout)


def in_turns(rounds: int, competitors: Mapping[str, Callable[..., float]]) -> dict[str, list[float]]:
    """What each says in each round; the order is turned round every time."""
    found: dict[str, list[float]] = {name: [] for name in competitors}
    for index in range(rounds):
        names = list(competitors)
        for name in names if index % 2 == 0 else reversed(names):
            found[name].append(competitors[name]())
    return found


def compared(found: Mapping[str, list[float]], reference: str) -> dict[str, Any]:
    return {
        name: {"median": float(np.median(kept)), "samples": kept, **latency.ratio(kept, found[reference])}
        for name, kept in found.items()
    }


def throughput(names: Sequence[str], precisions: Sequence[Precision], rounds: int) -> dict[str, Any]:
    rows = []
    for name in names:
        graphs = full_size(name)
        for precision, batch in itertools.product(precisions, BATCHES):
            graph = graphs[precision]
            with competitor(HERE / "engines.py", "keep-busy", graph.path, str(batch)) as ours:
                seconds = max(SHORTEST_S, round(BATCHES_A_ROUND * 2 * batch / ours("2")))
                facts = (graph.path, str(batch), str(graph.spec.height), str(graph.spec.width), str(seconds))
                app = functools.partial(answer_of, BENCHMARK_APP, *facts)
                found = in_turns(rounds, {"ov": functools.partial(ours, str(seconds)), "benchmark_app": app})
            rows.append(_row(name, precision, batch, compared(found, "benchmark_app"), seconds=seconds))
    return {"unit": "images/s", "better": "more", "rounds": rounds, "rows": rows}


def keep_busy(graph: Path, batch: int) -> None:
    """For every number of seconds on stdin: images a second, as many batches in flight as the engine takes."""
    file = artifact.read(graph)
    pictures = np.random.default_rng(0).integers(0, 256, (batch, file.spec.height, file.spec.width, 3), dtype=np.uint8)
    with engines.open_engine(file, runtime="ov", device="cpu", options=RunOptions(hint="throughput")) as engine:
        out = engine.classify(pictures)
        for line in sys.stdin:
            started = time.perf_counter()
            waiting, count = deque([engine.submit(pictures) for _ in range(engine.in_flight)]), engine.in_flight
            streams = max(1, engine.in_flight - 1)
            while time.perf_counter() - started < float(line) or count % streams:  # no stream ends alone
                engine.collect(waiting.popleft(), out)
                waiting.append(engine.submit(pictures))
                count += 1
            while waiting:
                engine.collect(waiting.popleft(), out)
            print(count * batch / (time.perf_counter() - started), flush=True)


def image_to_mask(names: Sequence[str], precisions: Sequence[Precision], rounds: int) -> dict[str, Any]:
    rows = []
    files = [str(path) for path in photographs()]
    for name in names:
        graphs, plain = full_size(name), logits(name)
        for precision, batch in itertools.product(precisions, BATCHES):
            graph, some = graphs[precision], files[:batch]
            size = (str(graph.spec.height), str(graph.spec.width))
            with (
                competitor(PLAIN, plain[precision], *size, *some) as peer,
                competitor(HERE / "engines.py", "draw", graph.path, "ort", *some) as in_ort,
                competitor(HERE / "engines.py", "draw", graph.path, "ov", *some) as in_ov,
            ):
                found = in_turns(rounds, {"onnxruntime, NumPy": peer, "ort": in_ort, "ov": in_ov})
            rows.append(_row(name, precision, batch, compared(found, "onnxruntime, NumPy")))
    return {"unit": "ms", "better": "less", "rounds": rounds, "rows": rows}


def draw(graph: Path, runtime: str, files: list[str]) -> None:
    """For every line on stdin: the images from file to encoded mask, as one batch, in ms."""
    with engines.open_engine(artifact.read(graph), runtime=runtime, device="cpu") as engine:
        task = latency.image_to_mask(engine, [Path(file) for file in files])
        for _ in sys.stdin:
            started = time.perf_counter_ns()
            task()
            print((time.perf_counter_ns() - started) / 1e6, flush=True)


def photographs() -> list[Path]:
    """Eight of the packaged photographs at 480x640, as JPEG: what a camera gives is larger than the network."""
    folder = Path("photographs")
    folder.mkdir(exist_ok=True)
    for path in pipeline.packaged_images()[:PHOTOGRAPHS]:
        enlarged = images.to_network_size(images.read(path), height=480, width=640)
        Image.fromarray(enlarged).save(folder / f"{path.stem}.jpg", quality=92)
    return sorted(folder.glob("*.jpg"))


def logits(name: str) -> dict[Precision, Path]:
    """The same network as most people export it: normalised float32 in, logits out; and its int8 by default options."""
    source = checkpoint.read(pipeline.EXPORTS / f"{name}.random.safetensors")
    network, spec = checkpoint.load(source.path)
    model = to_graph(network, dataclasses.replace(spec, output="logits"))
    first = next(iter(Graph(model).convolutions()))
    whole = Path(f"{name}.whole.onnx")
    onnx.save(model, whole)
    found = {precision: Path(f"{name}.{precision}.logits.onnx") for precision in PRECISIONS}
    onnx.utils.extract_model(str(whole), str(found[Precision.FP32]), [first.input[0]], ["logits"])
    whole.unlink()
    quantize_static(str(found[Precision.FP32]), str(found[Precision.INT8]), _Normalised(first.input[0], spec))
    return found


class _Normalised(CalibrationDataReader):  # type: ignore[misc] # ONNX Runtime is untyped
    """Four photographs, as most people prepare them."""

    def __init__(self, name: str, spec: Spec) -> None:
        pictures = (images.prepared(images.read(path), spec) for path in pipeline.packaged_images()[:4])
        scaled = ((picture.astype(np.float32) / 255 - spec.mean) / spec.std for picture in pictures)
        self._left = iter([{name: image.transpose(2, 0, 1)[None].astype(np.float32)} for image in scaled])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._left, None)


def _row(name: str, precision: Precision, batch: int, found: Mapping[str, Any], **facts: Any) -> dict[str, Any]:  # noqa: ANN401
    print(name, precision, batch, {each: round(facts["ratio"], 3) for each, facts in found.items()}, flush=True)
    return {"network": name, "precision": precision, "batch": batch, "competitors": found, **facts}


def _others(path: Path, report: Mapping[str, Any]) -> list[Any]:
    """What was measured before and was not measured now, on the same machine with the same packages."""
    if not path.is_file():
        return []
    before = json.loads(path.read_bytes())
    measured = {_place(row) for row in report["rows"]}
    return [row for row in before["rows"] if before["machine"] == report["machine"] and _place(row) not in measured]


def _place(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["network"], row["precision"], row["batch"]


def page(report: Mapping[str, Any]) -> str:
    """The table: medians, and ratios to the last column with their 95 % intervals."""
    rows = report["rows"]
    reference = next(name for name, facts in rows[0]["competitors"].items() if facts["interval"] == [1.0, 1.0])
    ours = [name for name in rows[0]["competitors"] if name != reference]
    head = ["network", "precision", "batch", *ours, reference, *(f"{name} / {reference}" for name in ours)]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for row in rows:
        medians = [f"{row['competitors'][name]['median']:.4g}" for name in (*ours, reference)]
        ratios = []
        for name in ours:
            low, high = row["competitors"][name]["interval"]
            ratios.append(f"{row['competitors'][name]['ratio']:.3f} ({low:.3f} to {high:.3f})")
        lines.append(" | ".join([row["network"], row["precision"], str(row["batch"]), *medians, *ratios]))
    table = "\n".join(f"| {line} |" for line in lines)
    facts = report["machine"]
    where = f"{facts['processor']}, {facts['cores']} cores, {report['rounds']} rounds"
    told = f"Medians in {report['unit']} ({report['better']} is better); ratios with their 95 % interval."
    return f"# {report['name']}\n\n`{report['command']}` on {where}.\n\n{told}\n\n{table}\n"


def main() -> None:
    if sys.argv[1] == "keep-busy":
        keep_busy(Path(sys.argv[2]), int(sys.argv[3]))
        return
    if sys.argv[1] == "draw":
        draw(Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "image-to-mask"])
    parser.add_argument("--network", choices=models.names(), action="append")
    parser.add_argument("--precision", choices=PRECISIONS, action="append", type=Precision)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--work", type=Path, default=Path("build/engines"))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    os.chdir(given.work)
    measure, rounds = {"throughput": (throughput, 4), "image-to-mask": (image_to_mask, 6)}[given.what]
    found = measure(given.network or models.names(), given.precision or PRECISIONS, given.rounds or rounds)
    command = shlex.join(["python", "benchmarks/engines.py", given.what])
    report = {"schema": SCHEMA, "name": given.what, "command": command, "machine": machine.describe(), **found}
    name = f"engines_{given.what.replace('-', '_')}"
    report["rows"] = sorted([*report["rows"], *_others(HERE / f"{name}.json", report)], key=_place)
    artifact.write_atomically(HERE / f"{name}.json", (json.dumps(report, indent=1) + "\n").encode())
    artifact.write_atomically(HERE / f"{name}.md", page(report).encode())


if __name__ == "__main__":
    main()
