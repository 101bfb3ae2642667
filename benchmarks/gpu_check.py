"""Test and time everything that needs an NVIDIA GPU, on a machine that has one; writes benchmarks/gpu_check.json.

    make gpu-check [PYTHON=python3]
    python benchmarks/gpu_check.py [--graphs DIR] [--runs 30] [--out benchmarks] [--rehearse]

It runs from a checkout, installs nothing and reaches no network: whatever this Python has is used, NumPy and Pillow at
least. (1) It looks which runtimes are installed for a GPU. (2) It runs the tests marked `gpu`, in which nothing that
was found may be skipped. (3) It proves and times them: PyTorch eager in fp32, torch.compile in fp16, ONNX Runtime on
CUDA, every TensorRT that loads, by events on the device, from memory, and from image file to mask, in one interleaved
run, and after it trtexec where there is one. Graphs are exported where onnx and onnxscript are installed, else taken
from DIR, the `export/` of another machine. `--rehearse` does all this on the CPU with one small network, to try the
script itself; its numbers mean nothing. Exit code 4 where a test or a proof failed, 3 where there is no GPU, no pytest,
or neither NumPy nor Pillow.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ENVIRONMENT, GATE = 3, 4
if absent := [name for name in ("numpy", "PIL") if importlib.util.find_spec(name) is None]:
    sys.stderr.write(f"Error: {', '.join(absent)} not installed.\nInstall NumPy and Pillow into this Python.\n")
    sys.exit(ENVIRONMENT)
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - once it is there

import segdeploy  # noqa: E402 - the checkout, not an installed one
from segdeploy import artifact, engines, fitting, images, models, random_weights, typed_json, workspace  # noqa: E402
from segdeploy.artifact import Artifact  # noqa: E402
from segdeploy.engines import Engine  # noqa: E402
from segdeploy.errors import SegdeployError  # noqa: E402
from segdeploy.spec import Precision  # noqa: E402
from segdeploy.timing import latency, machine  # noqa: E402

SCHEMA = 1
TESTS = [ROOT / "tests" / "engines" / "test_contract.py"]
EXPORTING = ("torch", "onnx", "onnxscript", "safetensors")
BATCHES = (1, 8)
TRTEXEC_S = 5


def found(device: str) -> dict[str, dict[str, Any]]:
    """Every runtime that is installed for the device, and what keeps it from being used."""
    listed = {}
    for name, module in engines.modules().items():
        if device in module.DEVICES and _is_installed(name, device):
            try:
                listed[name] = {"obstacle": None if device in module.devices() else f"built without {device}"}
            except SegdeployError as error:
                listed[name] = {"obstacle": error.what}
    return listed


def _is_installed(name: str, device: str) -> bool:
    try:
        runtime = engines.modules()[name].import_runtime()
    except SegdeployError:
        return False
    if device == "cuda" and name == "torch":
        return runtime.version.cuda is not None
    if device == "cuda" and name == "ort":
        return "CUDAExecutionProvider" in runtime.get_available_providers()
    return True


def tested(required: Sequence[str], mark: str) -> dict[str, Any]:
    """The tests, with a skip of what is required being a failure."""
    if absent := [name for name in ("pytest", *EXPORTING) if importlib.util.find_spec(name) is None]:
        return {"ran": False, "reason": f"not installed: {', '.join(absent)}", "failed": None}
    command = [sys.executable, "-m", "pytest", "-q", "-m", mark, "-p", "no:cacheprovider", *map(str, TESTS)]
    settings = {**os.environ, "SEGDEPLOY_REQUIRE": ",".join(required), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
    counts = {kind: int(count) for count, kind in re.findall(r"(\d+) (passed|failed|skipped|errors?)", done.stdout)}
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR", "SKIPPED"))]
    failed = done.returncode != 0 or not counts.get("passed")
    return {"ran": True, "failed": failed, **counts, "lines": lines}


def graphs(name: str, folder: Path | None, size: tuple[int, int]) -> dict[Precision, Artifact]:
    """fp32, fp16 and signed int8 of an untrained network: made here, or taken from `folder`."""
    if folder is None:
        from _graphs import quantized, untrained

        fp32 = untrained(name, size)
        return {
            Precision.FP32: fp32,
            Precision.FP16: quantized(fp32, Precision.FP16),
            Precision.INT8: quantized(fp32, Precision.INT8, ["signed"]),
        }
    forms = {Precision.FP32: None, Precision.FP16: None, Precision.INT8: "signed"}
    paths = {kind: artifact.graph_path(folder, name, kind, form) for kind, form in forms.items()}
    return {kind: artifact.read(path) for kind, path in paths.items() if path.is_file()}


@contextlib.contextmanager
def opened(name: str, device: str, size: tuple[int, int], given: dict[Precision, Artifact]) -> Iterator[dict[str, Any]]:
    """Every engine that can be opened for a network, by its name; for the others, why not."""
    with contextlib.ExitStack() as stack:
        listed: dict[str, Any] = {}
        for label, make in _makers(name, device, size, given):
            try:
                listed[label] = stack.enter_context(make())
            except Exception as error:  # noqa: BLE001 - one that fails is reported, and the rest is measured
                listed[label] = " ".join(str(error).split())
        yield listed


def _makers(
    name: str, device: str, size: tuple[int, int], given: dict[Precision, Artifact]
) -> Iterator[tuple[str, Callable[[], Engine]]]:
    for runtime, facts in found(device).items():
        module = engines.modules()[runtime]
        if facts["obstacle"] is not None:
            continue
        if runtime == "torch":
            yield "torch eager fp32", lambda: torch_engine(name, device, size, compiled=False)
            yield "torch.compile fp16", lambda: torch_engine(name, device, size, compiled=True)
            continue
        for precision, graph in given.items():
            if graph.form in {None, module.FORM}:
                yield f"{runtime}:{precision}", lambda r=runtime, g=graph: _engine(r, g, device)  # type: ignore[misc]


def _engine(runtime: str, graph: Artifact, device: str) -> Engine:
    file = graph
    if engines.modules()[runtime].OPENS == "plan":
        options = engines.BuildOptions(max_batch=max(BATCHES))
        file = engines.compiling(runtime).compile(graph, workspace.ENGINES, options)
    return engines.open_engine(file, runtime=runtime, device=device)


def torch_engine(name: str, device: str, size: tuple[int, int], *, compiled: bool) -> Engine:
    """The network as PyTorch runs it; compiled, as people do it: half by autocast, channels last."""
    import torch

    from segdeploy.engines.pytorch import TorchEngine
    from segdeploy.palettes import VOC
    from segdeploy.spec import Spec

    torch.manual_seed(random_weights.SEED)
    palette = VOC
    network = models.build(name, len(palette.classes)).eval()
    spec = Spec(name, {}, palette.classes, palette.colours, *size, margin=network.margin)
    engine = TorchEngine(models.deployed(network, spec).eval(), spec, device=device)
    if compiled:
        last = engine._deployed.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # noqa: SLF001 - the same, compiled
        half = torch.autocast(device, torch.float16 if device == "cuda" else torch.bfloat16)
        engine._deployed = half(torch.compile(last, dynamic=False))  # noqa: SLF001
        engine.classify(np.zeros((1, *size, 3), np.uint8))
    return engine


def timed(name: str, listed: dict[str, Any], runs: int, batches: Sequence[int]) -> list[dict[str, Any]]:
    usable = {label: engine for label, engine in listed.items() if isinstance(engine, Engine)}
    files = photographs(max(batches))
    rows = [{"network": name, "engine": label, "error": why} for label, why in listed.items() if label not in usable]
    for batch in batches:
        labels, tasks = [], []
        for label, engine in usable.items():
            stacked = np.stack([fitting.prepared(images.read(file), engine.spec) for file in files[:batch]])
            tasks += [latency.host(engine, stacked), latency.image_to_mask(engine, files[:batch])]
            labels += [(label, "host"), (label, "image_to_mask")]
            if (device_ms := engine.device_ms(stacked, runs=runs)) is not None:
                rows.append(_row(name, label, "device", batch, device_ms))
        samples = latency.interleaved(tasks, latency.Effort(runs=runs))
        rows += [_row(name, *label, batch, kept) for label, kept in zip(labels, samples, strict=True)]
    return rows


def _row(name: str, label: str, level: str, batch: int, ms: Sequence[float]) -> dict[str, Any]:
    times = typed_json.to_builtins(latency.summary(ms, batch=batch))
    return {"network": name, "engine": label, "level": level, "batch": batch, **times}


def trtexec(name: str, made: dict[Precision, Artifact], batches: Sequence[int]) -> list[dict[str, Any]]:
    """The same graphs in TensorRT's own program, after the others."""
    rows = []
    for (precision, graph), batch in itertools.product(made.items(), batches):
        place = [str(number) for number in (batch, graph.spec.height, graph.spec.width, TRTEXEC_S)]
        command: list[str | Path] = [sys.executable, HERE / "peers" / "trtexec.py", graph.path, *place]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        median, p99, images_per_s = (float(number) for number in done.stdout.split())
        facts = {"network": name, "engine": f"trtexec {precision}", "level": "device", "batch": batch}
        rows.append({**facts, "latency_ms": {"median": median, "p99": p99}, "images_per_s": images_per_s})
    return rows


def photographs(count: int) -> list[Path]:
    return workspace.packaged_images()[:count]


def proven(device: str) -> list[dict[str, Any]]:
    """The packaged U-Net in every engine of the device, against PyTorch; in a folder that has no other."""
    Path("proofs").mkdir()
    os.chdir("proofs")
    rows = []
    for runtime, facts in found(device).items():
        precisions = [Precision.FP32] if runtime == "torch" else list(Precision)
        for precision in precisions if facts["obstacle"] is None else []:
            engine = f"{runtime}:{precision}"
            try:
                proof = segdeploy.parity("unet", engine=engine, device=device)
                agreement = proof.stages[-1].agreement
                rows.append({"engine": engine, "passed": proof.passed, "agreement": agreement})
            except SegdeployError as error:
                rows.append({"engine": engine, "passed": False, "reason": error.what})
    return rows


def table(report: dict[str, Any]) -> str:
    lines = ["| network | engine | level | batch | median ms | p99 | images/s |", "|---|---|---|---|---|---|---|"]
    for row in report["rows"]:
        if "error" in row:
            lines.append(f"| {row['network']} | {row['engine']} | {row['error']} | | | | |")
            continue
        ms = row["latency_ms"]
        numbers = f"{ms['median']:.3f} | {ms['p99']:.3f} | {row['images_per_s']:.1f}"
        lines.append(f"| {row['network']} | {row['engine']} | {row['level']} | {row['batch']} | {numbers} |")
    return "\n".join(lines) + "\n"


def measure(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The report, as it grows: what has been measured is kept whatever comes next."""
    device, mark = ("cpu", "not gpu and not slow") if given.rehearse else ("cuda", "gpu")
    size = (64, 96) if given.rehearse else random_weights.SIZE
    names, batches, runs = (["unet"], (1, 2), 2) if given.rehearse else (models.names(), BATCHES, given.runs)
    exporting = all(importlib.util.find_spec(package) for package in EXPORTING)
    report: dict[str, Any] = {"schema": SCHEMA, "made_at": artifact.now(), "rehearsal": given.rehearse}
    here = typed_json.to_builtins(machine.describe())
    report |= {"machine": here, "gpu": _gpu(), "runtimes": found(device), "rows": [], "proofs": []}
    # What is installed and cannot be used is in `runtimes`, with its obstacle; what can be used may skip no test.
    usable = [name for name, facts in report["runtimes"].items() if facts["obstacle"] is None]
    report["tests"] = tested(usable, mark)
    yield report
    for name in names:
        try:
            made = graphs(name, given.graphs, size) if exporting or given.graphs else {}
            with opened(name, device, size, made) as listed:
                report["rows"] += timed(name, listed, runs, batches)
            report["rows"] += trtexec(name, made, batches) if shutil.which("trtexec") else []
        except Exception as error:  # noqa: BLE001 - one network that does not fit must not cost the others
            report["rows"].append({"network": name, "engine": "-", "error": " ".join(str(error).split())})
        yield report
    report["proofs"] = proven(device) if exporting else []
    yield {**report, "seconds": time.monotonic() - given.started}


def _gpu() -> dict[str, Any] | None:
    try:
        return dict(typed_json.to_builtins(engines.gpu_here()))
    except SegdeployError as error:
        return {"obstacle": error.what}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=Path)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--rehearse", action="store_true")
    given = parser.parse_args(namespace=argparse.Namespace(started=time.monotonic()))
    given.out, given.graphs = given.out.resolve(), given.graphs and given.graphs.resolve()
    usable = [name for name, facts in found("cuda").items() if facts["obstacle"] is None]
    if not usable and not given.rehearse:
        obstacles = {name: facts["obstacle"] for name, facts in found("cuda").items()}
        sys.stderr.write(f"Error: no runtime here can use a GPU: {obstacles or 'none is installed for one'}.\n")
        sys.stderr.write("Run it on a machine with an NVIDIA GPU, or try the script itself with --rehearse.\n")
        return ENVIRONMENT
    name = "gpu_rehearsal" if given.rehearse else "gpu_check"
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        for report in measure(given):
            artifact.write_atomically(given.out / f"{name}.json", (json.dumps(report, indent=1) + "\n").encode())
            artifact.write_atomically(given.out / f"{name}.md", table(report).encode())
    sys.stdout.write(table(report))
    sys.stdout.write(f"tests: {report['tests']}\nproofs: {report['proofs']}\n")
    if report["tests"]["failed"] or not all(proof["passed"] for proof in report["proofs"]):
        return GATE
    return 0 if report["tests"]["ran"] else ENVIRONMENT


if __name__ == "__main__":
    sys.exit(main())
