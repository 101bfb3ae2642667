"""Which runtime serves a precision on this machine, and why."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np

from segdeploy import artifact, engines, fitting, typed_json
from segdeploy.artifact import Artifact
from segdeploy.errors import InvalidFileError, MissingRuntimeError, SegdeployError
from segdeploy.progress import Progress
from segdeploy.timing import latency, machine

SCHEMA: Final = 1
RUNS = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """A runtime on a device; `obstacle` says why it cannot be used here, with what to do, or is None."""

    runtime: str
    device: str
    obstacle: SegdeployError | None


@dataclasses.dataclass(frozen=True, slots=True)
class Selected:
    """A runtime on a device, and the reason for it in words."""

    runtime: str
    device: str
    why: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Machine:
    """What of a machine decides which runtime is the faster."""

    processor: str
    cores: int
    packages: Mapping[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class _Key:
    """What a timing holds for: these graphs (runtime to sha256), on such a machine."""

    graphs: Mapping[str, str]
    machine: _Machine


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """The file beside a graph: the median of one image in each runtime, in ms."""

    schema: Literal[1] = SCHEMA
    key: _Key
    ms: Mapping[str, float]


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


def usable(found: Sequence[Candidate]) -> list[Candidate]:
    """Those without an obstacle. Raise MissingRuntimeError, with every obstacle, where there is none."""
    free = [candidate for candidate in found if candidate.obstacle is None]
    if not free:
        obstacles = [f"{each.runtime} on {each.device}: {each.obstacle.what}" for each in found if each.obstacle]
        on_cpu = any(each.device == "cpu" for each in found)
        remedy = "Install one: pip install 'segdeploy[cpu]'" if on_cpu else "Give --device cpu"
        raise MissingRuntimeError(
            f"no runtime is usable here. {' '.join(obstacles)}", f"{remedy} (segdeploy doctor shows every runtime)."
        )
    return free


def without_timing(found: Sequence[Candidate]) -> Selected | None:
    """The best of the usable ones, where that is plain; None where several serve the CPU and have to be timed."""
    best = found[0]
    if best.device == "cuda":
        return Selected(best.runtime, best.device, "the first of the runtimes for this GPU")
    if len(found) == 1:
        return Selected(best.runtime, best.device, "the only runtime for the CPU that is installed")
    return None


def fastest(files: Mapping[str, Artifact], *, progress: Progress) -> Selected:
    """The fastest on the CPU, by runtime the file that it opens; timed once, and kept beside the graph."""
    graph = next(iter(files.values()))
    record = graph.path.with_suffix(".choice.json")
    facts = machine.describe()
    key = _Key(
        graphs={runtime: file.sha256 for runtime, file in files.items()},
        machine=_Machine(facts.processor, facts.cores, facts.packages),
    )
    ms = _kept(record, key)
    where = f"kept in {record}"
    if ms is None:
        ms = _timed(files, progress)
        try:
            artifact.write_atomically(record, typed_json.to_text(_Record(key=key, ms=ms)))
        except InvalidFileError as error:
            where = f"not kept: {error.what.rstrip('.')}"
    best = min(ms, key=lambda runtime: ms[runtime])
    others = ", ".join(f"{runtime} {taken:.2f} ms" for runtime, taken in ms.items() if runtime != best)
    return Selected(best, "cpu", f"{ms[best]:.2f} ms an image, {others}; {where}")


def _kept(path: Path, key: _Key) -> Mapping[str, float] | None:
    """What was measured of the same graphs on such a machine, or None."""
    try:
        document = typed_json.parse(path.read_bytes(), where=str(path), remedy="")
        record = typed_json.convert(document, _Record, where=str(path), remedy="")
    except (OSError, SegdeployError):
        return None
    return record.ms if record.key == key and set(record.ms) == set(key.graphs) else None


def _timed(files: Mapping[str, Artifact], progress: Progress) -> dict[str, float]:
    """The median of some interleaved runs on one image, in ms."""
    opened = {runtime: engines.open_engine(file, runtime=runtime, device="cpu") for runtime, file in files.items()}
    try:
        spec = next(iter(opened.values())).spec
        noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        batch = fitting.prepared(noise, spec)[None]
        tasks = [latency.host(engine, batch) for engine in opened.values()]
        with progress("Choosing the runtime", latency.WHOLE) as percent:
            samples = latency.interleaved(tasks, latency.Effort(runs=RUNS), percent=percent)
    finally:
        for engine in opened.values():
            engine.close()
    return {runtime: float(np.median(kept)) for runtime, kept in zip(opened, samples, strict=True)}
