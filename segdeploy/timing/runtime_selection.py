"""Which runtime serves a precision on this machine, and why."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segdeploy import artifact, engines, images
from segdeploy.artifact import Artifact
from segdeploy.errors import InvalidFileError, MissingRuntimeError, SegdeployError
from segdeploy.progress import Progress
from segdeploy.timing import latency, machine

SCHEMA = 1
RUNS = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """A runtime on a device; `obstacle` says why it cannot be used here, with what to do, or is None."""

    runtime: str
    device: str
    obstacle: SegdeployError | None


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """A runtime on a device, and the reason for it in words."""

    runtime: str
    device: str
    why: str


def candidates(device: str = "auto") -> list[Candidate]:
    """Every runtime that serves what was exported, the best first: plans, graphs on the GPU, graphs on the CPU.

    Those on the CPU are equals until they are timed.
    """
    modules = engines.modules()
    plans = [name for name, module in modules.items() if module.OPENS == "plan"]
    graphs = [name for name, module in modules.items() if module.OPENS == "graph"]
    listed = [(name, "cuda") for name in (*plans, *graphs) if "cuda" in modules[name].DEVICES]
    listed += [(name, "cpu") for name in graphs if "cpu" in modules[name].DEVICES]
    return [
        Candidate(name, where, _obstacle(modules[name], where)) for name, where in listed if device in {"auto", where}
    ]


def _obstacle(module: engines.EngineModule, device: str) -> SegdeployError | None:
    try:
        if device not in module.devices():
            return MissingRuntimeError(f"it was built without {device}.", "Install its build for GPUs.")
    except SegdeployError as error:
        return error
    return None


def choose(found: Sequence[Candidate], file_for: Callable[[str], Artifact], *, progress: Progress) -> Choice:
    """The best usable one. Where several serve the CPU they are timed once, and the result is kept beside the graph.

    `file_for` gives what a runtime opens. Raise MissingRuntimeError with every obstacle where none is usable.
    """
    usable = [candidate for candidate in found if candidate.obstacle is None]
    if not usable:
        obstacles = [f"{each.runtime} on {each.device}: {each.obstacle.what}" for each in found if each.obstacle]
        raise MissingRuntimeError(
            f"no runtime is usable here. {' '.join(obstacles)}", "Install one (segdeploy doctor), or give --device cpu."
        )
    best = usable[0]
    if best.device == "cuda":
        return Choice(best.runtime, best.device, "the first of the runtimes for this GPU")
    if len(usable) == 1:
        return Choice(best.runtime, best.device, "the only runtime for the CPU that is installed")
    files = {candidate.runtime: file_for(candidate.runtime) for candidate in usable}
    return _faster(files, progress)


def _faster(files: Mapping[str, Artifact], progress: Progress) -> Choice:
    graph = next(iter(files.values()))
    record = graph.path.with_suffix(".choice.json")
    key = {
        "graphs": {runtime: file.sha256 for runtime, file in files.items()},
        "machine": {fact: machine.describe()[fact] for fact in ("processor", "cores", "packages")},
    }
    ms = _kept(record, key)
    where = f"kept in {record}"
    if ms is None:
        ms = _timed(files, progress)
        document = {"schema": SCHEMA, "key": key, "ms": ms}
        try:
            artifact.write_atomically(record, (json.dumps(document, indent=1) + "\n").encode())
        except InvalidFileError as error:
            where = f"not kept: {error.what.rstrip('.')}"
    fastest = min(ms, key=lambda runtime: ms[runtime])
    others = ", ".join(f"{runtime} {taken:.2f} ms" for runtime, taken in ms.items() if runtime != fastest)
    return Choice(fastest, "cpu", f"{ms[fastest]:.2f} ms an image, {others}; {where}")


def _kept(record: Path, key: Mapping[str, Any]) -> dict[str, float] | None:
    """What was measured of the same graphs on such a machine, or None."""
    try:
        document = json.loads(record.read_bytes())
        if document["schema"] != SCHEMA or document["key"] != key or set(document["ms"]) != set(key["graphs"]):
            return None
        return {runtime: float(taken) for runtime, taken in document["ms"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _timed(files: Mapping[str, Artifact], progress: Progress) -> dict[str, float]:
    """The median of some interleaved runs on one image, in ms."""
    opened = {runtime: engines.open_engine(file, runtime=runtime, device="cpu") for runtime, file in files.items()}
    try:
        spec = next(iter(opened.values())).spec
        noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        batch = images.prepared(noise, spec)[None]
        tasks = [latency.host(engine, batch) for engine in opened.values()]
        with progress("Choosing the runtime", latency.WHOLE) as percent:
            samples = latency.interleaved(tasks, latency.Effort(runs=RUNS), percent=percent)
    finally:
        for engine in opened.values():
            engine.close()
    return {runtime: float(np.median(kept)) for runtime, kept in zip(opened, samples, strict=True)}
