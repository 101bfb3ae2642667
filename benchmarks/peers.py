"""Measure segdeploy against the tools people would use instead; writes benchmarks/peers_NAME.json and .md.

peers_speed.json is a result for `segdeploy report`; peers_speed_rounds.json has every sample it is made of.

    python benchmarks/peers.py speed [--network NAME] [--precision int8] [--batch 8] [--rounds N] [--work DIR]
    python benchmarks/peers.py accuracy --data DIR [--network NAME] [--work DIR]

`speed`: the four networks at full size (360x480, 21 classes, untrained), batch 1 and 8, from memory and from image file
to encoded mask. In fp32 PyTorch eager, in channels_last and through torch.compile, plain ONNX Runtime, OpenVINO's
Python API, all with NumPy and Pillow around them (peers/), and segdeploy in the runtime that `--engine fp32` chooses;
in int8 ONNX Runtime's `quantize_static` and NNCF, both with their default options, and `--engine int8`. Every
competitor is a process of its own; they take turns in random order, round by round, with the same weights, images,
threads and PNG compression, and ratios are taken within a round. `accuracy`: the packaged networks in int8, each
quantised on the same 32 packaged images, on DIR's validation images. NNCF gets an environment of its own in --work.
With --network, --precision and --batch only those are measured anew, and the other rows stay. Graphs are made in
--work.
"""

import argparse
import contextlib
import dataclasses
import itertools
import os
import shlex
import subprocess
import sys
import time
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _peer_results as peer_results
import numpy as np
import onnx
import onnxruntime
import openvino
from _contest import competitor, in_turns
from _graphs import full_size
from _peer_results import LEVELS, OURS, PYTORCH, Accuracy, Rounds, Score, SpeedRounds
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from PIL import Image

import segdeploy
from segdeploy import (
    artifact,
    cores,
    engines,
    fitting,
    images,
    making,
    metrics,
    models,
    random_weights,
    typed_json,
    workspace,
)
from segdeploy.blocks import Network
from segdeploy.checkpoints import checkpoint
from segdeploy.data import layouts
from segdeploy.engines import Engine
from segdeploy.graphs.graph import Graph
from segdeploy.graphs.to_onnx import to_graph
from segdeploy.proof import accuracy
from segdeploy.spec import Precision, Spec
from segdeploy.timing import latency, machine, results
from segdeploy.timing.result_types import Result, Subject
from segdeploy.workspace import EXPORTS

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
PRECISIONS = (Precision.FP32, Precision.INT8)
BATCHES = (1, 8)
ROUNDS = {1: 12, 8: 6}
PHOTOGRAPHS = 8
NNCF = ("nncf==3.4.0", f"openvino=={openvino.__version__.split('-')[0]}", "onnx")


def competitors(name: str, precision: Precision, graph: Path, peers: Mapping[str, Path]) -> dict[str, list[str | Path]]:
    """The command of each; what follows is the size and the images."""
    ours = [HERE / "peers.py", "draw", graph, precision]
    if precision is Precision.INT8:
        return {
            "ONNX Runtime, quantize_static": [PEERS / "onnxruntime_numpy.py", peers["quantize_static"]],
            "OpenVINO, NNCF": [PEERS / "openvino_numpy.py", peers["nncf"]],
            OURS: ours,
        }
    weights = EXPORTS / f"{name}.random.safetensors"
    return {
        "torch eager": [PEERS / "torch_pillow.py", "eager", weights],
        "torch channels_last": [PEERS / "torch_pillow.py", "channels_last", weights],
        "torch.compile": [PEERS / "torch_pillow.py", "compile", weights],
        "ONNX Runtime, NumPy": [PEERS / "onnxruntime_numpy.py", peers["fp32"]],
        "OpenVINO, NumPy": [PEERS / "openvino_numpy.py", peers["fp32"]],
        OURS: ours,
    }


def contest(name: str, precision: Precision, batch: int, rounds: int, peers: Mapping[str, Path]) -> list[Rounds]:
    """The samples of each competitor at each level."""
    graph = artifact.read(artifact.graph_path(EXPORTS, name, precision, _form(precision)))
    files = [str(path) for path in photographs()[:batch]]
    place = [str(graph.spec.height), str(graph.spec.width), *files]
    with contextlib.ExitStack() as stack:
        asked = {
            each: stack.enter_context(competitor(*command, *place))
            for each, command in competitors(name, precision, graph.path, peers).items()
        }
        for ask in asked.values():
            ask("0")
        samples = in_turns(rounds, asked)
        maps = {each: _class_maps(ask, f"{each}.npy") for each, ask in asked.items()}
    agreement = {each: float(np.mean(found == _reference(name, batch, maps))) for each, found in maps.items()}
    timed = [
        Rounds(
            model=name,
            precision=precision,
            batch=batch,
            level=level,
            tool=each,
            agreement=agreement[each],
            samples_ms=tuple(found[index] for found in samples[each]),
        )
        for each, (index, level) in itertools.product(samples, enumerate(LEVELS))
    ]
    report_progress(timed)
    return timed


def _class_maps(ask: Any, file: str) -> NDArray[np.uint8]:  # noqa: ANN401 - a competitor
    ask(file)
    found: NDArray[np.uint8] = np.load(file)
    Path(file).unlink()
    return found


def _reference(name: str, batch: int, maps: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """PyTorch's class maps: eager's own where it is in the contest, kept for those where it is not."""
    kept = Path(f"{name}.{batch}.reference.npy")
    if "torch eager" in maps:
        np.save(kept, maps["torch eager"])
    found: NDArray[np.uint8] = np.load(kept)
    return found


def report_progress(timed: Sequence[Rounds]) -> None:
    for each in timed:
        ms = float(np.median(each.samples_ms))
        print(f"{each.subject:50} {each.level:14} {each.batch} {ms:9.1f} ms {each.agreement:.4%}", flush=True)


def _opened(graph: Path, precision: str) -> Engine:
    """The engine that segdeploy chooses; `segdeploy.open` refuses untrained networks, which are timed here."""
    found = making.find(str(graph), precision, "auto")
    return engines.open_engine(found.file, runtime=found.runtime, device=found.device)


def draw(graph: Path, precision: str, files: Sequence[str]) -> None:
    """Ours, in the protocol of the peers: the product's own path from image file to encoded mask."""
    with _opened(graph, precision) as engine:
        watched = _Watched(engine)
        task = latency.image_to_mask(watched, [Path(file) for file in files])
        for line in sys.stdin:
            total = task()
            if line.strip().endswith(".npy"):
                np.save(line.strip(), watched.class_maps)
            print(watched.ms, total, flush=True)


class _Watched:
    """An engine whose calls are timed."""

    def __init__(self, engine: engines.Engine) -> None:
        self.spec = engine.spec
        self._engine = engine
        self.ms = 0.0
        self.class_maps = np.zeros(0, np.uint8)

    def classify(self, batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
        started = time.perf_counter_ns()
        self.class_maps = self._engine.classify(batch)
        self.ms = (time.perf_counter_ns() - started) / 1e6
        return self.class_maps


def photographs() -> list[Path]:
    """Eight of the packaged photographs at 480x640, as JPEG: what a camera gives is larger than the network."""
    folder = Path("photographs")
    folder.mkdir(exist_ok=True)
    for path in workspace.packaged_images()[:PHOTOGRAPHS]:
        file = folder / f"{path.stem}.jpg"
        if not file.exists():
            Image.fromarray(images.to_network_size(images.read(path), height=480, width=640)).save(file, quality=92)
    return sorted(folder.glob("*.jpg"))


def peer_graphs(network: Network, spec: Spec, calibration: Sequence[Path], folder: Path) -> dict[str, Path]:
    """The network as most people export it, normalised float32 in and logits out, and what two tools make of that."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {"fp32": folder / "logits.onnx", "quantize_static": folder / "static.onnx", "nncf": folder / "nncf.xml"}
    if all(path.exists() for path in found.values()):
        return found
    model = to_graph(network, dataclasses.replace(spec, output="logits"))
    first = next(iter(Graph(model).convolutions())).input[0]
    onnx.save(model, folder / "whole.onnx")
    onnx.utils.extract_model(str(folder / "whole.onnx"), str(found["fp32"]), [first], ["logits"])
    pictures = [_normalised(path, spec) for path in calibration]
    quantize_static(str(found["fp32"]), str(found["quantize_static"]), _Pictures(first, pictures))
    np.savez(folder / "pictures.npz", *pictures)
    command = [_nncf_python(), PEERS / "nncf_quantize.py", found["fp32"], folder / "pictures.npz", found["nncf"]]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return found


def _nncf_python() -> Path:
    """NNCF holds back the versions of others: it has an environment of its own."""
    folder = Path("..", "nncf-environment").resolve()  # of both measurements
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *NNCF], check=True)
        (folder / ".ready").touch()
    return python


def _normalised(path: Path, spec: Spec) -> NDArray[np.float32]:
    picture = fitting.prepared(images.read(path), spec)
    scaled = (picture.astype(np.float32) / 255 - spec.mean) / spec.std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None].astype(np.float32))


class _Pictures(CalibrationDataReader):  # type: ignore[misc] # ONNX Runtime is untyped
    """Photographs, as most people prepare them."""

    def __init__(self, name: str, pictures: Sequence[NDArray[np.float32]]) -> None:
        self._left = iter([{name: picture} for picture in pictures])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._left, None)


def speed(
    names: Sequence[str], precisions: Sequence[Precision], batches: Sequence[int], rounds: int | None
) -> tuple[list[Rounds], list[Subject]]:
    timed, subjects = [], []
    for name in names:
        if not all(artifact.graph_path(EXPORTS, name, each, _form(each)).exists() for each in PRECISIONS):
            full_size(name)
        network, spec = checkpoint.load(EXPORTS / f"{name}.random.safetensors")
        few = workspace.packaged_images()[: random_weights.STATISTICS]
        peers = peer_graphs(network, spec, few, Path("peers") / name)
        for precision, batch in itertools.product(precisions, batches):
            timed += contest(name, precision, batch, rounds or ROUNDS[batch], peers)
        for precision in precisions:
            subjects += _subjects(name, precision, spec, peers)
    return timed, subjects


def _form(precision: Precision) -> str | None:
    return "unsigned" if precision is Precision.INT8 else None


def _subjects(name: str, precision: Precision, spec: Spec, peers: Mapping[str, Path]) -> list[Subject]:
    graph = artifact.read(artifact.graph_path(EXPORTS, name, precision, _form(precision)))
    with _opened(graph.path, precision) as engine:
        runtime = engine.runtime
    found = []
    for each, command in competitors(name, precision, graph.path, peers).items():
        file = next(part for part in command if isinstance(part, Path) and part.suffix != ".py")
        subject = Subject(
            id=f"{name} {precision} {each}",
            model=name,
            engine=each,
            runtime=runtime if each == OURS else None,
            precision=precision,
            device="cpu",
            peer=each != OURS,
            path=file.name,
            sha256=artifact.sha256(file),
            size_mb=_size_mb(file),
            height=spec.height,
            width=spec.width,
            threads=cores.usable(),
            classes=spec.classes,
            colours=spec.colours,
            random_weights=True,
            miou_reason="the networks are untrained",
        )
        found.append(subject)
    return found


def _with_agreement(subject: Subject, rounds: Sequence[Rounds]) -> Subject:
    """The least over the batches; int8 of an untrained network says nothing about int8."""
    if subject.precision == Precision.INT8:
        return dataclasses.replace(subject, agreement=None, agreement_reason="untrained: see peers_accuracy.md")
    least = min(each.agreement for each in rounds if each.subject == subject.id)
    return dataclasses.replace(subject, agreement=least)


def _size_mb(file: Path) -> float:
    return sum(each.stat().st_size for each in (file, file.with_suffix(".bin")) if each.exists()) / 1e6


def scores(names: Sequence[str], data: Path) -> list[Score]:
    """What mIoU and agreement the packaged networks have in PyTorch, and in int8 by three tools."""
    found = []
    for name in names:
        network, spec = checkpoint.load(workspace.PACKAGED / f"{name}.safetensors")
        peers = peer_graphs(network, spec, workspace.packaged_images(), Path("packaged") / name)
        making.export(name)
        making.export(name, precision=Precision.INT8, options=making.ExportOptions(forms=("unsigned",)))
        run = {"ONNX Runtime, quantize_static": _in_onnxruntime, "OpenVINO, NNCF": _in_openvino}
        graphs = {"ONNX Runtime, quantize_static": peers["quantize_static"], "OpenVINO, NNCF": peers["nncf"]}
        with segdeploy.open(name, engine="torch:fp32") as torch, segdeploy.open(name, engine="int8") as ours:
            draws = {PYTORCH: torch.classify, OURS: ours.classify}
            draws |= {each: run[each](graphs[each], spec) for each in run}
            found += _scored(name, spec, draws, data)
    return found


def _in_onnxruntime(graph: Path, spec: Spec) -> Any:  # noqa: ANN401
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: _as_float(batch, spec)})[0].argmax(1).astype(np.uint8)


def _in_openvino(graph: Path, spec: Spec) -> Any:  # noqa: ANN401
    compiled = openvino.Core().compile_model(str(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda batch: compiled(_as_float(batch, spec))[0].argmax(1).astype(np.uint8)


def _as_float(batch: NDArray[np.uint8], spec: Spec) -> NDArray[np.float32]:
    return ((batch.astype(np.float32) / 255 - spec.mean) / spec.std).transpose(0, 3, 1, 2).astype(np.float32)


def _scored(name: str, spec: Spec, draws: Mapping[str, Any], data: Path) -> list[Score]:
    counts = {each: np.zeros((len(spec.classes),) * 2, np.int64) for each in draws}
    agreeing, pixels = dict.fromkeys(draws, 0), 0
    for picture in layouts.open_folder(data).val:
        truth = picture.required_truth(classes=len(spec.classes), ignore_index=spec.ignore_index)
        batch = fitting.prepared(images.read(picture.image), spec)[None]
        maps = {each: classify(batch)[0] for each, classify in draws.items()}
        pixels += maps[OURS].size
        for each, found in maps.items():
            counts[each] += accuracy.against(truth, found, spec)
            agreeing[each] += int(np.count_nonzero(found == maps[PYTORCH]))
    scored = [
        Score(network=name, tool=each, miou=metrics.miou(counts[each]) or 0.0, agreement=agreeing[each] / pixels)
        for each in draws
    ]
    print(typed_json.to_builtins(scored), flush=True)
    return scored


def write_speed(timed: Sequence[Rounds], subjects: Sequence[Subject], command: str) -> None:
    """The rounds, the result and the page; with what an earlier call on the same machine measured besides."""
    path, kept = HERE / "peers_speed.json", HERE / "peers_speed_rounds.json"
    here, before = machine.describe(), peer_results.read(kept, SpeedRounds)
    if before is not None and before.protocol == peer_results.PROTOCOL and peer_results.is_like(here, before.machine):
        timed = peer_results.merged(timed, before.rounds, lambda each: each.place)
        subjects = peer_results.merged(subjects, results.read(path).subjects, lambda each: (each.id,))
    rounds = peer_results.merged(timed, (), lambda each: each.place)
    subjects = [_with_agreement(subject, rounds) for subject in sorted(subjects, key=lambda each: each.id)]
    result = Result(
        made_at=artifact.now(),
        command=command,
        version=machine.provenance().version,
        commit=machine.provenance().commit,
        machine=here,
        images=PHOTOGRAPHS,
        subjects=tuple(subjects),
        rows=tuple(peer_results.rows(rounds, subjects)),
    )
    found = SpeedRounds(
        command=command,
        made_at=artifact.now(),
        machine=here,
        rounds=rounds,
        ratios=tuple(peer_results.ratios(rounds)),
    )
    artifact.write_atomically(kept, typed_json.to_text(found))
    artifact.write_atomically(path, typed_json.to_text(result))
    artifact.write_atomically(path.with_suffix(".md"), peer_results.speed_page(found, PRECISIONS).encode())


def write_accuracy(scored: Sequence[Score], command: str) -> None:
    path = HERE / "peers_accuracy.json"
    here, before = machine.describe(), peer_results.read(path, Accuracy)
    like = before is not None and peer_results.is_like(here, before.machine)
    rows = peer_results.merged(scored, before.rows if before and like else (), lambda each: (each.network, each.tool))
    found = Accuracy(command=command, made_at=artifact.now(), machine=here, rows=rows)
    artifact.write_atomically(path, typed_json.to_text(found))
    artifact.write_atomically(path.with_suffix(".md"), peer_results.accuracy_page(found).encode())


def main() -> None:
    if sys.argv[1] == "draw":
        draw(Path(sys.argv[2]), sys.argv[3], sys.argv[6:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "accuracy"])
    parser.add_argument("--network", choices=models.names(), action="append")
    parser.add_argument("--precision", choices=PRECISIONS, action="append", type=Precision)
    parser.add_argument("--batch", choices=BATCHES, action="append", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/peers"))
    given = parser.parse_args()
    names, data = given.network or models.names(), given.data and given.data.resolve()
    work = given.work / given.what  # the packaged graphs bear the names of the untrained ones
    work.mkdir(parents=True, exist_ok=True)
    os.chdir(work)
    command = shlex.join(["python", "benchmarks/peers.py", given.what, *(["--data", data.name] if data else [])])
    if given.what == "speed":
        timed, subjects = speed(names, given.precision or PRECISIONS, given.batch or BATCHES, given.rounds)
        write_speed(timed, subjects, command)
    else:
        write_accuracy(scores(names, data), command)


if __name__ == "__main__":
    main()
