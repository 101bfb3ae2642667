"""A plan and all that its manifest says: what was asked for, what the parser made of it, what the engine delivers."""

import dataclasses
import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segdeploy import artifact, external_data, signature
from segdeploy._version import __version__
from segdeploy.artifact import Artifact
from segdeploy.engines import _audit, _plan_build
from segdeploy.engines._base import ENOUGH, BuildOptions
from segdeploy.engines._cuda import Gpu
from segdeploy.engines._plan_build import Log, Trt, log_of
from segdeploy.errors import GateFailedError, InvalidFileError
from segdeploy.progress import Progress
from segdeploy.spec import Precision, Spec


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """What a plan is for: a runtime and a compute capability; `gpu` is the one here, where it can load the plan."""

    runtime: str
    capability: str
    named: bool  # to the builder, which else builds for the GPU it finds
    gpu: Gpu | None


def compile_plan(
    trt: Trt,
    graph: Artifact,
    folder: Path,
    options: BuildOptions,
    *,
    target: Target,
    cache: Path | None,
    progress: Progress,
) -> Artifact:
    """Build a graph for a target and write the plan, signed.

    Raise GateFailedError, with nothing written, where the plan would compute wider than the graph asks.
    """
    signature.make_key()
    data, origin = _bytes_of(graph), _origin(trt, graph, folder, target)
    log = log_of(trt)
    builder = trt.Builder(log.logger)
    network = _plan_build.parse(trt, builder, log, graph.path, data)
    typed = _audit.typed(trt, network)
    asked = dict(graph.made_by.get("asked", {graph.precision.value: 1.0}))
    _require_typed(graph, asked, typed.shares())
    named = target.capability if target.named else None
    config = _plan_build.configured(trt, builder, graph.spec, options, target=named)
    plan = _plan_build.build(
        trt, builder, network, config, options, cache=cache, title=graph.spec.model, progress=progress
    )
    found = None if target.gpu is None else _inspected(trt, plan, log, graph.spec)
    delivered = _audit.delivered(typed, graph.precision, found)
    path = artifact.plan_path(folder, graph.spec.model, target.runtime, graph.precision, target.capability)
    _require_delivered(path, graph.precision, delivered)
    facts = {"asked": asked, "typed": {"work": typed.shares(), "tensors": typed.layers}, **delivered}
    described = Artifact(
        path=path,
        kind="plan",
        precision=graph.precision,
        spec=graph.spec,
        sha256=hashlib.sha256(plan).hexdigest(),
        made_by={"size": len(plan), **origin, "options": _described(options, cache), **facts},
        made_at=artifact.now(),
        form=graph.form,
    )
    signature.publish(described, plan)
    return described


def _origin(trt: Trt, graph: Artifact, folder: Path, target: Target) -> dict[str, Any]:
    calibration, weights = graph.made_by.get("calibration"), graph.made_by.get("weights")
    if not isinstance(weights, dict) or not {"kind", "sha256"} <= set(weights):
        raise InvalidFileError(f"the manifest of {graph.path} names no weights.", "Export it again.")
    return {
        "command": "build",
        "version": __version__,
        "runtime": target.runtime,
        "runtime_version": trt.__version__,
        "system": system(),
        "compute_capability": target.capability,
        "gpu": None if target.gpu is None else target.gpu.name,
        "driver": None if target.gpu is None else target.gpu.driver,
        "cuda": None if target.gpu is None else target.gpu.cuda,
        "graph": {"path": os.path.relpath(graph.path, folder), "sha256": graph.sha256},
        "weights": {fact: weights[fact] for fact in ("kind", "sha256")},
        "calibration_sha256": None if calibration is None else artifact.digest(calibration),
    }


def _described(options: BuildOptions, cache: Path | None) -> dict[str, Any]:
    """The options as they were given, so that the plan can be built again, and the timing cache that was used."""
    given = None if options.timing_cache is None else str(options.timing_cache)
    used = artifact.sha256(cache) if cache is not None and cache.is_file() else None
    return {**dataclasses.asdict(options), "timing_cache": given, "timing_cache_sha256": used}


def system() -> str:
    return f"{platform.system()} {platform.machine()}"


def _bytes_of(graph: Artifact) -> bytes:
    data = graph.path.read_bytes()
    external_data.require_contained(graph.path, data)
    if hashlib.sha256(data).hexdigest() != graph.sha256:
        raise InvalidFileError(f"{graph.path} changed while it was read.", "Run the command again.")
    return data


def _require_typed(graph: Artifact, asked: Mapping[str, float], typed: Mapping[str, float]) -> None:
    wanted, found = asked.get(graph.precision, 0.0), typed.get(graph.precision, 0.0)
    if found < ENOUGH * wanted:
        raise GateFailedError(
            f"{graph.path} asks for {wanted:.1%} of its work in {graph.precision}; the parsed network has {found:.1%}.",
            f"Export it again: segdeploy export --model {graph.spec.model} --precision {graph.precision}",
        )


def _inspected(trt: Trt, plan: bytes, log: Log, spec: Spec) -> dict[str, Precision | None]:
    engine = trt.Runtime(log.logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise InvalidFileError(f"the plan that was just built does not load: {log.reason()}", "Build it again.")
    inspector, context = engine.create_engine_inspector(), engine.create_execution_context()
    if context is None:
        raise InvalidFileError(f"the plan that was just built does not start: {log.reason()}", "Free device memory.")
    context.set_input_shape("images", (1, spec.height, spec.width, 3))  # TensorRT 10 says no types of open shapes
    inspector.execution_context = context
    return _audit.inspected(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _require_delivered(path: Path, precision: Precision, delivered: Mapping[str, Any]) -> None:
    if delivered["delivered"] not in {None, precision}:
        raise GateFailedError(
            f"{path} would do {delivered['delivered_share']:.1%} of its {precision} work in {precision}; wider: "
            f"{', '.join(delivered['wider'][:5])}.",
            "It was not written. Build another precision, or with another version of the runtime.",
        )
