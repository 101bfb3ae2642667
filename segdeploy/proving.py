"""Compares a graph and its engine with PyTorch, pixel by pixel, and keeps the certificate where the file is."""

import contextlib
import dataclasses
import functools
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from segdeploy import artifact, engines, images, precision, signature, typed_json, workspace
from segdeploy.artifact import Artifact
from segdeploy.certificate import Certificate, Departure
from segdeploy.checkpoints import checkpoint
from segdeploy.data.dataset import Picture
from segdeploy.engines import Engine, EngineFile, RunOptions
from segdeploy.errors import GateFailedError, SegdeployError, missing_torch
from segdeploy.progress import Progress, silent
from segdeploy.spec import Precision, Spec

if TYPE_CHECKING:
    import onnx

    from segdeploy.precision import Tolerance
    from segdeploy.proof.bisection import Run
    from segdeploy.proof.limits import GivenLimits
    from segdeploy.proof.reference import TorchReference
    from segdeploy.proof.stages import StageRun

log = logging.getLogger("segdeploy")


@dataclasses.dataclass(frozen=True, slots=True)
class ProofOptions:
    """What is asked of a proof.

    `min_agreement`, `max_drop` (points of mIoU) and `max_unexplained` (of float32) take the place of a stage's own
    limits; the two shares are in 0..1. `bisect` looks for the first layer that departs, in the first failing stage, or
    in the last one where none fails. `require_engine` refuses to prove a graph alone where no engine can run it here.
    `run`: how the engine runs.
    """

    min_agreement: float | None = None
    max_drop: float | None = None
    max_unexplained: float | None = None
    bisect: bool = False
    require_engine: bool = False
    run: RunOptions = engines.RUN

    def limits(self) -> "GivenLimits":
        from segdeploy.proof.limits import GivenLimits

        return GivenLimits(self.min_agreement, self.max_drop, self.max_unexplained)


DEFAULT = ProofOptions()


def judged(opened: EngineFile, pictures: Sequence[Picture], *, progress: Progress = silent) -> Certificate:
    """The certificate of a graph or a plan in its runtime; it is written nowhere."""
    graph = opened.file if opened.file.kind == "graph" else workspace.graph_of_plan(opened.file)
    some = pictures[: workspace.RANDOM_PROOF_IMAGES] if graph.has_random_weights else pictures
    return judge(graph, opened, some, progress=progress)


def judge(
    graph: Artifact,
    opened: EngineFile,
    pictures: Sequence[Picture],
    *,
    options: ProofOptions = DEFAULT,
    progress: Progress,
) -> Certificate:
    """The certificate of what a runtime opens, along the chain of its graph."""
    proof = _torch_needed("segdeploy.proof.stages")
    source, file = workspace.checkpoint_of(graph), opened.file
    if file.kind == "checkpoint":
        file = dataclasses.replace(source, spec=graph.spec)
    with contextlib.ExitStack() as stack:
        engine = None
        if file.form in {None, engines.modules()[opened.runtime].FORM}:
            engine = stack.enter_context(
                engines.open_engine(file, runtime=opened.runtime, device=opened.device, options=options.run)
            )
        runs = proof.limited(_stages(graph, engine, with_graph=file.kind != "checkpoint"), options.limits())
        reference = reference_of(source, graph.spec)
        found: Certificate = proof.certify(graph, reference, runs, pictures, progress=progress)
        if options.bisect:
            departure = _Bisection(graph, file, found, reference).departure(runs, pictures, progress)
            found = dataclasses.replace(found, departure=departure)
    return found


def reference_of(source: Artifact, spec: Spec) -> "TorchReference":
    """The network of a checkpoint in PyTorch, at the size of `spec`."""
    return _kept_reference(source.path, source.sha256, spec.to_json())


@functools.lru_cache(maxsize=1)
def _kept_reference(path: Path, _sha256: str, spec: str) -> "TorchReference":
    """Several engines of one network are compared with the same masks: PyTorch draws them once."""
    reference = _torch_needed("segdeploy.proof.reference")
    network, _ = checkpoint.load(path)
    kept: TorchReference = reference.TorchReference(network, Spec.from_json(spec))
    return kept


def quantization() -> ModuleType:
    """The search for graphs of low precision. Raise MissingRuntimeError where PyTorch is not installed."""
    return _torch_needed("segdeploy.quantization.search")


def _torch_needed(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing_torch() from error


def _stages(graph: Artifact, engine: Engine | None, *, with_graph: bool) -> "list[StageRun]":
    from segdeploy.engines import ort
    from segdeploy.proof.stages import StageRun

    if graph.precision is not Precision.FP32:
        runs: list[StageRun] = quantization().stages(graph, workspace.fp32_graph_of(graph), engine)
        return runs
    as_written = [StageRun("graph", ort.open(graph, device="cpu", optimised=False))] if with_graph else []
    return [*as_written, StageRun("engine", engine)]


@dataclasses.dataclass(frozen=True, slots=True)
class _Bisection:
    """What the first failing stage does otherwise than PyTorch, or the last one that ran, on its worst image."""

    graph: Artifact
    file: Artifact
    found: Certificate
    reference: "TorchReference"

    def departure(self, runs: "Sequence[StageRun]", pictures: Sequence[Picture], progress: Progress) -> Departure:
        from segdeploy.proof import bisection

        name = self.found.first_failing_stage or self.found.proven_to
        stage = next(run for run in runs if run.name == name)
        picture = self._worst(pictures, stage.name)
        image = images.prepared(images.read(picture.image), self.graph.spec)
        with progress(f"Looking into {self.file.path.stem}", 1) as done:
            rounding, model, run = self._looked_into(stage)
            look = bisection.look(self.reference.network, self.graph.spec, model, image, run=run)
            done()
        drawn = None if stage.engine is None else stage.engine.classify(image[None])[0]
        expected, _ = self.reference.class_map(image)
        otherwise = bisection.none_found(look, drawn, expected, passed=self.found.passed)
        name, photo = stage.name, picture.image.name
        departure = bisection.departure(look, stage=name, rounding=rounding, image=photo, otherwise=otherwise)
        if self.file.kind == "plan" and stage.name == "engine":
            about = "A plan cannot be looked into without building another: this is of the graph it was built from."
            departure = dataclasses.replace(departure, text=f"{departure.text} {about}")
        return departure

    def _worst(self, pictures: Sequence[Picture], stage: str) -> Picture:
        worst = next(each.worst_images for each in self.found.stages if each.name == stage)
        return next((each for each in pictures if worst and each.image.name == worst[0].image), pictures[0])

    def _looked_into(self, stage: "StageRun") -> "tuple[Tolerance, onnx.ModelProto, Run]":
        """What a stage runs, as a graph, what rounding explains there, and what gives all outputs of a copy.

        The copy runs in the arithmetic of that stage.
        """
        import onnx

        from segdeploy.engines import ort
        from segdeploy.proof import bisection

        search = quantization()
        graph = workspace.fp32_graph_of(self.graph) if stage.name == search.FP32_STAGE else self.graph
        wide = graph.precision is Precision.FP32
        rounding = bisection.FLOAT32 if wide else precision.module(graph.precision).TOLERANCE
        model = onnx.load(graph.path)
        if stage.name == "engine" and stage.engine is not None and self.file.kind == "graph":
            tensors = engines.of_graphs(stage.engine.runtime).tensors
            return rounding, model, functools.partial(tensors, device=stage.engine.device)
        model, optimised = search.arithmetic(graph, model, as_written=True)
        return rounding, model, functools.partial(ort.tensors, device="cpu", optimised=optimised)


def keep(file: Artifact, found: Certificate) -> Artifact:
    """The same file with its certificate in the manifest; a plan is signed again.

    Without the key that signed the plan, the certificate is written beside the manifest.
    """
    file = dataclasses.replace(file, certificate=found)
    if file.kind != "plan":
        artifact.write_manifest(file)
    elif signature.is_signed(file.path):
        signature.publish(file)
    else:
        beside = file.path.with_name(f"{file.path.name}.parity.json")
        artifact.write_atomically(beside, typed_json.to_text(found))
        log.warning("The manifest is not signed with a key of this user: the proof stands in %s.", beside)
    return file


def require_not_refuted(file: Artifact) -> None:
    """A graph that failed its proof can be looked into and timed, but draws no masks for anybody."""
    if file.certificate is not None:
        require_passed(file.certificate, file)


def require_passed(found: Certificate, graph: Artifact) -> None:
    """Raise GateFailedError, with the stage and the reason, where a certificate says that the masks are others."""
    if not found.refutes:
        return
    reason = "" if found.failing is None else found.failing.reason
    raise GateFailedError(
        f"{graph.path} does not draw PyTorch's masks from the stage {found.first_failing_stage!r} on: {reason}.",
        f"Give another --size, or see where: segdeploy parity --model {graph.path} --engine {graph.precision} --bisect",
    )


def obstacle_to_proving(plan: Artifact, graph: Artifact) -> str | None:
    """What keeps this machine from proving a plan that it can build."""
    target = signature.facts_of(plan).target
    if target.gpu is None:
        return f"there is no GPU of compute capability {target.compute_capability} here"
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed here"
    try:
        workspace.checkpoint_of(graph)
    except SegdeployError as error:
        return error.what
    return None
