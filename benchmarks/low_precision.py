"""Measure what fp16, fp8 and int8 keep and what int8 gains; writes benchmarks/low_precision_NAME.json and .md.

    python benchmarks/low_precision.py speed [--runs 20] [--work DIR]
    python benchmarks/low_precision.py accuracy NAME --data DIR [--checkpoints DIR] [--only PRECISION]
                                               [--work DIR]
    python benchmarks/low_precision.py memory [--work DIR]

`speed`: the four networks at full size (360x480, 21 classes, untrained), fp32 and int8 in ONNX Runtime and OpenVINO,
in one interleaved run with a chain of int8 convolutions, whose best GOP/s is the peak. `accuracy`: int8 in both
forms, inside the default budget and with --max-drop 0.1, on a labelled folder whose val.txt proves; the packaged
weights, where no others are given, also in fp16 and fp8, and calibrated on their own images alone. --only measures
one precision inside its default budget, and puts its rows into the table that is there. `memory`: the peak of
calibrating the full-size U-Net at 512x1024 with 10 and with 50 images. Graphs are made in DIR.
"""

import argparse
import functools
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
from _graphs import full_size, untrained
from onnx import TensorProto, helper, numpy_helper

import segdeploy
from segdeploy import artifact, cores, engines, fitting, images, making, models, typed_json, workspace
from segdeploy.artifact import Artifact
from segdeploy.certificate import Certificate
from segdeploy.graphs.graph import Graph, layer_work
from segdeploy.making import ExportOptions
from segdeploy.progress import silent
from segdeploy.quantization import recipes
from segdeploy.quantization.images_in_parts import Parts
from segdeploy.spec import Precision
from segdeploy.timing import latency, machine
from segdeploy.timing.result_types import Machine

SCHEMA = 1
HERE = Path(__file__).parent
SPEED_ENGINES = ("ort:fp32", "ov:fp32", "ort:int8", "ov:int8")
PEAK_CHANNELS = (256, 384, 512)
PEAK_SIZE = (48, 64)
PEAK_DEPTH = 6
LARGE = (512, 1024)


def speed(runs: int) -> dict[str, Any]:
    """Best and median milliseconds of each engine, and shares of the int8 peak of the same run."""
    tasks: list[latency.Task] = []
    labels: list[tuple[str, str, float]] = []
    for name in models.names():
        graphs = full_size(name)
        fp32 = graphs[Precision.FP32]
        giga = 2e-9 * sum(layer_work(Graph(onnx.load(fp32.path))).values())
        photo = fitting.prepared(images.read(workspace.packaged_images()[0]), fp32.spec)[None]
        for engine in SPEED_ENGINES:
            runtime, _, precision = engine.partition(":")
            opened = engines.open_engine(graphs[Precision(precision)], runtime=runtime, device="cpu")
            tasks.append(latency.host(opened, photo))
            labels.append((name, engine, giga))
    for channels in PEAK_CHANNELS:
        model, giga = chain(channels)
        x = np.random.default_rng(0).integers(0, 256, (1, channels, *PEAK_SIZE), dtype=np.uint8)
        for engine, run in (("ort", _in_ort(model)), ("ov", _in_ov(model))):
            tasks.append(latency.timed(functools.partial(run, x)))
            labels.append((f"chain of {channels}", engine, giga))
    samples = latency.interleaved(tasks, latency.Effort(runs=runs))
    rows = [
        {
            "network": network,
            "engine": engine,
            "gop": giga,
            "best_ms": min(kept),
            "median_ms": float(np.median(kept)),
            "best_gop_per_s": 1000 * giga / min(kept),
        }
        for (network, engine, giga), kept in zip(labels, samples, strict=True)
    ]
    return {"runs": runs, "rows": rows}


def chain(channels: int) -> tuple[onnx.ModelProto, float]:
    """3x3 convolutions in int8, one behind the other, and the giga-operations of all."""
    random = np.random.default_rng(0)
    constants: dict[str, Any] = {
        "scale": np.float32(0.05),
        "zero": np.uint8(0),
        "weight_scale": np.float32(0.01),
        "none": np.int8(0),
    }
    nodes = [helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["d0"])]
    for index in range(PEAK_DEPTH):
        constants[f"w{index}"] = random.integers(-127, 128, (channels, channels, 3, 3), dtype=np.int8)
        nodes += [
            helper.make_node("DequantizeLinear", [f"w{index}", "weight_scale", "none"], [f"f{index}"]),
            helper.make_node("Conv", [f"d{index}", f"f{index}"], [f"c{index}"], pads=[1, 1, 1, 1]),
            helper.make_node("QuantizeLinear", [f"c{index}", "scale", "zero"], [f"q{index}"]),
            helper.make_node("DequantizeLinear", [f"q{index}", "scale", "zero"], [f"d{index + 1}"]),
        ]
    shape = [1, channels, *PEAK_SIZE]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(f"d{PEAK_DEPTH}", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model, 2e-9 * PEAK_DEPTH * 9 * channels**2 * PEAK_SIZE[0] * PEAK_SIZE[1]


def _in_ort(model: onnx.ModelProto) -> Callable[[Any], object]:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = cores.usable()
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})


def _in_ov(model: onnx.ModelProto) -> Callable[[Any], object]:
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", {"NUM_STREAMS": 1})
    request = compiled.create_infer_request()
    return lambda x: request.infer([x])


def speed_table(report: dict[str, Any]) -> str:
    rows = report["rows"]
    peak = max(row["best_gop_per_s"] for row in rows if row["network"].startswith("chain"))
    head = f"int8 peak of this run: {peak:.0f} GOP/s. Milliseconds, best of {report['runs']} runs."
    lines = [
        head,
        "",
        "| network | GOP | ort fp32 | ov fp32 | ort int8 | x its fp32 | ov int8 | x best fp32 | of the peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in models.names():
        best = {row["engine"]: row["best_ms"] for row in rows if row["network"] == name}
        giga = next(row["gop"] for row in rows if row["network"] == name)
        fastest = min(best["ort:fp32"], best["ov:fp32"])
        lines.append(
            f"| {name} | {giga:.1f} | {best['ort:fp32']:.0f} | {best['ov:fp32']:.0f} | {best['ort:int8']:.0f} "
            f"| {best['ort:fp32'] / best['ort:int8']:.2f} | {best['ov:int8']:.0f} "
            f"| {fastest / best['ov:int8']:.2f} | {1000 * giga / best['ov:int8'] / peak:.0%} |"
        )
    return "\n".join(lines)


def accuracy(data: Path, checkpoints: Path | None, *, only: Precision | None) -> list[dict[str, Any]]:
    """Every network in low precision: what the proof measured on images that took no other part."""
    rows = []
    for name in models.names():
        weights = None if checkpoints is None else checkpoints / f"{name}.safetensors"
        segdeploy.export(name, options=ExportOptions(weights=weights, data=None if only else data))
        kinds = [Precision.INT8] if weights else [Precision.FP16, Precision.FP8, Precision.INT8]
        budgets = [(kind, None) for kind in kinds if only in {None, kind}]
        for kind, drop in budgets if only else [*budgets, (Precision.INT8, 0.1)]:
            graphs = segdeploy.export(name, precision=kind, options=ExportOptions(data=data, max_drop=drop))
            rows += [_kept(graph, graph.certificate, str(drop or "default")) for graph in graphs]
            sys.stderr.write(f"{name} {kind} {drop}\n")
        if weights is None and not only:  # packaged ones bring their own images: nobody needs labels to calibrate
            for graph in segdeploy.export(name, precision=Precision.INT8):
                found = segdeploy.parity(graph.path, engine="int8", data=data)
                rows.append(_kept(graph, found, "without data"))
    return rows


def _beside(name: str, rows: list[dict[str, Any]], only: Precision) -> list[dict[str, Any]]:
    """The rows of a table that is there, with others in the place of those of one precision."""
    before = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    every = [*(row for row in before if row["precision"] != only), *rows]
    return sorted(every, key=lambda row: (row["network"], list(Precision).index(Precision(row["precision"]))))


def _kept(graph: Artifact, found: Certificate | None, budget: str) -> dict[str, Any]:
    assert found is not None  # noqa: S101 - it was made a moment ago
    assert graph.low_precision is not None  # noqa: S101 - the same
    stage = next(stage for stage in found.stages if stage.name == "graph")
    executed = graph.low_precision.executed
    return {
        "network": graph.spec.model,
        "precision": graph.precision,
        "form": graph.form,
        "budget": budget,
        "images": found.images,
        "agreement": stage.agreement,
        "decided_agreement": stage.decided_agreement,
        "miou_change": stage.miou_change,
        "passed": found.passed,
        "low_share": graph.low_precision.low_share,
        "in_float": sorted(graph.low_precision.in_float),
        "delivered": {name: facts.delivered_share for name, facts in executed.items()},
    }


def accuracy_table(report: dict[str, Any]) -> str:
    lines = [
        "| network | graph | budget | agreement | of decided pixels | mIoU, points | low | float32 layers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        graph = row["precision"] if row["form"] is None else f"{row['precision']} {row['form']}"
        wide = ", ".join(layer.partition("/")[0] for layer in row["in_float"]) or "none"
        lines.append(
            f"| {row['network']} | {graph} | {row['budget']} | {row['agreement']:.3%} "
            f"| {row['decided_agreement']:.3%} | {row['miou_change']:+.3f} | {row['low_share']:.1%} | {wide} |"
        )
    return "\n".join(lines)


def memory() -> dict[str, Any]:
    """Peak memory of processes of their own that calibrate on 10 and on 50 images."""
    untrained("unet", LARGE)
    rows = []
    for count in (10, 50):
        done = subprocess.run(  # noqa: S603 - this very script
            [sys.executable, __file__, "calibrate", str(count)], check=True, capture_output=True, text=True
        )
        rows.append(json.loads(done.stdout))
    return {"size": "{}x{}".format(*LARGE), "rows": rows, "ratio": rows[1]["peak_mb"] / rows[0]["peak_mb"]}


def calibrate(count: int) -> dict[str, Any]:
    graph = making.graph_for("unet")
    files = [workspace.packaged_images()[index % 32] for index in range(count)]
    started = time.perf_counter()
    parts = Parts(files, [], [])
    recipes.recipes(graph, Precision.INT8, ["signed"], parts, method=None, cache=None, progress=silent)
    seconds = time.perf_counter() - started
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"images": count, "peak_mb": peak_mb, "seconds": seconds}


def memory_table(report: dict[str, Any]) -> str:
    lines = [f"Full-size U-Net at {report['size']}.", "", "| images | peak MB | seconds |", "|---|---|---|"]
    lines += [f"| {row['images']} | {row['peak_mb']:.0f} | {row['seconds']:.0f} |" for row in report["rows"]]
    return "\n".join([*lines, "", f"50 images take {report['ratio']:.3f} of the memory of 10."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "accuracy", "memory", "calibrate"])
    parser.add_argument("name", nargs="?", help="of the data, in the file's name (accuracy)")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--checkpoints", type=Path)
    parser.add_argument("--only", type=Precision, choices=list(Precision))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--work", type=Path, default=Path("work"))
    arguments = parser.parse_args()
    if arguments.what == "calibrate":
        sys.stdout.write(json.dumps(calibrate(int(arguments.name))))
        return
    data = arguments.data.resolve() if arguments.data else None
    checkpoints = arguments.checkpoints.resolve() if arguments.checkpoints else None
    arguments.work.mkdir(parents=True, exist_ok=True)
    os.chdir(arguments.work)
    if arguments.what == "speed":
        report, table = speed(arguments.runs), speed_table
    elif arguments.what == "memory":
        report, table = memory(), memory_table
    else:
        assert data is not None  # noqa: S101 - the usage says so
        report, table = {"rows": accuracy(data, checkpoints, only=arguments.only)}, accuracy_table
    words = [arguments.what, *([arguments.name] if arguments.name else []), *(["--data", data.name] if data else [])]
    words += ["--checkpoints", "checkpoints"] if checkpoints else []
    words += ["--only", arguments.only] if arguments.only else []
    name = "_".join(["low_precision", *words[: 2 if arguments.name else 1]])
    if arguments.only:
        report["rows"] = _beside(name, report["rows"], arguments.only)
    write(name, shlex.join(words), report, table(report), merged=bool(arguments.only))


def write(name: str, words: str, report: dict[str, Any], table: str, *, merged: bool) -> None:
    """The JSON and the table; `merged`: a part of an earlier one, whose command and machine stay beside its own."""
    here, path = machine.describe(), HERE / f"{name}.json"
    command = f"python benchmarks/low_precision.py {words}"
    run = {"command": command, "made_at": artifact.now(), "machine": typed_json.to_builtins(here)}
    runs = [run]
    if merged:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        runs = [*earlier.get("runs", [{key: earlier.get(key) for key in run}]), run]
    document = {"schema": SCHEMA + 1, "runs": runs, **report}
    artifact.write_atomically(path, (json.dumps(document, indent=1) + "\n").encode())
    head = f"{'; '.join(map(_place, runs))}.\n\n"
    artifact.write_atomically(HERE / f"{name}.md", (head + table + "\n").encode())
    sys.stdout.write(head + table + "\n")


def _place(run: dict[str, Any]) -> str:
    measured_on = typed_json.convert(run["machine"], Machine, where="machine", remedy="", partial=True)
    return f"`{run['command']}` on {measured_on.named}"


if __name__ == "__main__":
    main()
