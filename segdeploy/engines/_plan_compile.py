"""A plan and all that its manifest says: what was asked for, what the parser made of it, what the engine delivers."""

import dataclasses
import hashlib
import os
import platform
from collections.abc import Collection, Mapping
from pathlib import Path

from segdeploy import artifact, external_data, signature, typed_json
from segdeploy._version import __version__
from segdeploy.artifact import Artifact
from segdeploy.engines import _audit, _plan_build
from segdeploy.engines._base import ENOUGH
from segdeploy.engines._plan_build import Log, Trt, log_of
from segdeploy.errors import GateFailedError, InvalidFileError, InvalidRequestError
from segdeploy.low_precision import Executed
from segdeploy.origin import GraphOrigin, Origin
from segdeploy.progress import Progress
from segdeploy.spec import Precision, Spec
from segdeploy.target import BuildOptions, PlanFacts, Target, TypedNetwork


@dataclasses.dataclass(frozen=True, slots=True)
class PlanBuild:
    """What a plan is built for and with; `cross`: the builder is told the target's compute capability."""

    runtime: str
    target: Target
    options: BuildOptions
    cache: Path | None
    cross: bool


def compile_plan(trt: Trt, graph: Artifact, folder: Path, build: PlanBuild, *, progress: Progress) -> Artifact:
    """Build a graph for a target and write the plan, signed.

    Raise GateFailedError, with nothing written, where the plan would compute wider than the graph asks.
    """
    signature.make_key()
    data, target = _bytes_of(graph), build.target
    log = log_of(trt)
    builder = trt.Builder(log.logger)
    network = _plan_build.parse(trt, builder, log, graph.path, data)
    _require_batch(graph, network, build.options)
    typed = _audit.typed(trt, network)
    asked = {graph.precision.value: 1.0} if graph.low_precision is None else dict(graph.low_precision.asked)
    _require_typed(graph, asked, typed.shares())
    named = target.compute_capability if build.cross else None
    config = _plan_build.configured(trt, builder, graph.spec, build.options, target=named)
    title, options = graph.spec.name, build.options
    plan = _plan_build.build(trt, builder, network, config, options, cache=build.cache, title=title, progress=progress)
    found = None if target.gpu is None else _inspected(trt, plan, log, graph.spec, typed.work)
    executed = _audit.executed(typed, graph.precision, found)
    path = artifact.plan_path(folder, graph.spec.name, build.runtime, graph.precision, target)
    _require_executed(path, graph.precision, executed)
    facts = PlanFacts(
        runtime=build.runtime,
        runtime_version=trt.__version__,
        system=system(),
        target=target,
        size=len(plan),
        options=build.options,
        timing_cache_sha256=_sha256_of(build.cache),
        calibration_sha256=_calibration_sha256(graph),
        asked=asked,
        typed=TypedNetwork(work=typed.shares(), tensors=typed.layers),
        executed=executed,
    )
    described = _described(graph, path, plan, _origin(graph, folder), facts)
    signature.publish(described, plan)
    return described


def _require_batch(graph: Artifact, network: Trt, options: BuildOptions) -> None:
    if network.get_input(0).shape[0] == 1 and options.max_batch > 1:
        raise InvalidRequestError(f"{graph.path} takes one image at a time.", "Build it with --max-batch 1.")


def _described(graph: Artifact, path: Path, plan: bytes, origin: Origin, facts: PlanFacts) -> Artifact:
    return Artifact(
        path=path,
        kind="plan",
        precision=graph.precision,
        form=graph.form,
        spec=graph.spec,
        sha256=hashlib.sha256(plan).hexdigest(),
        made_at=artifact.now(),
        origin=origin,
        plan=facts,
    )


def _sha256_of(cache: Path | None) -> str | None:
    return artifact.sha256(cache) if cache is not None and cache.is_file() else None


def _origin(graph: Artifact, folder: Path) -> Origin:
    weights, foreign = graph.origin.weights, graph.origin.foreign
    if weights is None and foreign is None:
        raise InvalidFileError(f"the manifest of {graph.path} names no weights.", "Export it again.")
    return Origin(
        command="build",
        version=__version__,
        weights=None if weights is None else dataclasses.replace(weights, path=None),
        foreign=None if foreign is None else foreign.without_paths,
        graph=GraphOrigin(path=os.path.relpath(graph.path, folder), sha256=graph.sha256),
    )


def _calibration_sha256(graph: Artifact) -> str | None:
    calibration = graph.origin.calibration
    return None if calibration is None else artifact.digest(typed_json.to_builtins(calibration))


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
            f"Export it again: segdeploy export --model {graph.spec.name} --precision {graph.precision}",
        )


def _inspected(trt: Trt, plan: bytes, log: Log, spec: Spec, layers: Collection[str]) -> dict[str, Precision | None]:
    engine = trt.Runtime(log.logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise InvalidFileError(f"the plan that was just built does not load: {log.reason()}", "Build it again.")
    inspector, context = engine.create_engine_inspector(), engine.create_execution_context()
    if context is None:
        raise InvalidFileError(f"the plan that was just built does not start: {log.reason()}", "Free device memory.")
    context.set_input_shape("images", (1, spec.height, spec.width, 3))  # TensorRT 10 says no types of open shapes
    inspector.execution_context = context
    return _audit.inspected(inspector.get_engine_information(trt.LayerInformationFormat.JSON), layers)


def _require_executed(path: Path, precision: Precision, executed: Executed) -> None:
    if executed.delivered not in {None, precision}:
        raise GateFailedError(
            f"{path} would do {executed.delivered_share:.1%} of its {precision} work in {precision}; wider: "
            f"{', '.join(executed.wider[:5])}.",
            "It was not written. Build another precision, or with another version of the runtime.",
        )
