"""Compares a graph and its engine with PyTorch, pixel by pixel, and keeps the certificate where the file is."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy import (
    artifact,
    claims,
    departures,
    engines,
    extras,
    signature,
    with_torch,
    workspace,
)
from segdeploy.artifact import Artifact
from segdeploy.certificate import ENGINE, Certificate
from segdeploy.checkpoints import opening
from segdeploy.data.dataset import Picture
from segdeploy.engines import Engine, EngineFile, RunOptions
from segdeploy.errors import GateFailedError, InvalidFileError, InvalidRequestError
from segdeploy.origin import ForeignKind, ForeignOrigin, GraphReading
from segdeploy.progress import Progress, silent
from segdeploy.proof import kit, limits, stages
from segdeploy.proof.kit import Kit
from segdeploy.proof.limits import FLOAT32, GivenLimits
from segdeploy.proof.reference import Reference
from segdeploy.proof.samples import FileSamples
from segdeploy.proof.stages import StageRun
from segdeploy.spec import Precision, Spec

if TYPE_CHECKING:
    from segdeploy.proof.torch_reference import TorchReference

log = logging.getLogger("segdeploy")


@dataclasses.dataclass(frozen=True, slots=True)
class ProofOptions:
    """What is asked of a proof.

    `min_agreement`, `max_drop` (points of mIoU) and `max_unexplained` (of float32) take the place of a stage's own
    limits; the two shares are in 0..1. What passes only under them is not proven to any other command. `batches`: how
    many images the engine gets at once, besides one alone; empty takes those that the file is made for. `bisect` looks
    for the first layer that departs, in the first failing stage, or in the last one where none fails. `require_engine`
    refuses to prove a graph alone where no engine can run it here. `allow_inconclusive` lets a proof count that could
    not have failed. `run`: how the engine runs.
    """

    min_agreement: float | None = None
    max_drop: float | None = None
    max_unexplained: float | None = None
    batches: tuple[int, ...] = ()
    bisect: bool = False
    require_engine: bool = False
    allow_inconclusive: bool = False
    run: RunOptions = engines.RUN

    @property
    def limits(self) -> GivenLimits:
        return GivenLimits(self.min_agreement, self.max_drop, self.max_unexplained)


DEFAULT = ProofOptions()
CHOSEN = ("name", "height", "width", "output", "fit", "fill", "overlap")  # of a Spec, by an export


def as_asked(found: Certificate, options: ProofOptions) -> Certificate:
    """The same measurements under the limits that the options name, where they name any."""
    return found if options.limits == GivenLimits() else stages.limited(found, options.limits)


# A proof with PyTorch


@extras.named_where_missing()
def judged(
    opened: EngineFile, pictures: Sequence[Picture], *, options: ProofOptions = DEFAULT, progress: Progress = silent
) -> Certificate:
    """The certificate of a graph or a plan in its runtime; it is written nowhere."""
    graph = workspace.graph_behind(opened.file)
    some = pictures[: workspace.RANDOM_PROOF_IMAGES] if graph.has_random_weights else pictures
    return judge(graph, opened, some, options=options, progress=progress)


def judge(
    graph: Artifact,
    opened: EngineFile,
    pictures: Sequence[Picture],
    *,
    options: ProofOptions = DEFAULT,
    progress: Progress,
) -> Certificate:
    """The certificate of what a runtime opens, along the chain of its graph, under the limits that are the file's own.

    What departs is looked for under the limits that the options name.
    """
    reference, file = reference_of(graph), opened.file
    if options.bisect:
        _require_walkable(graph)
    if file.kind == "checkpoint":
        file = dataclasses.replace(workspace.checkpoint_of(graph), spec=graph.spec)
    with contextlib.ExitStack() as stack:
        engine = None
        if file.form in {None, engines.modules()[opened.runtime].FORM}:
            engine = stack.enter_context(
                engines.open_engine(file, runtime=opened.runtime, device=opened.device, options=options.run)
            )
        runs = _stages(graph, _engine_stage(file, engine, options), with_graph=file.kind != "checkpoint")
        samples = FileSamples(pictures, graph.spec)
        found = stages.certify(graph, reference, runs, samples, progress=progress)
        found = dataclasses.replace(found, inconclusive_allowed=options.allow_inconclusive)
        if options.bisect:
            asked = as_asked(found, options)
            departure = departures.Departures(graph, file, asked, reference).departure(runs, pictures, progress)
            found = dataclasses.replace(found, departure=departure)
    return found


def _require_walkable(graph: Artifact) -> None:
    """The float32 graph of a torch module that was adopted has nothing beside it: the module has no such nodes."""
    if not departures.can_look_into(graph):
        raise InvalidRequestError(
            f"{graph.spec.name} was a torch module: --bisect walks beside its float32 graph, and this is that graph.",
            "Give a graph of low precision: --engine ort:int8",
        )


def _require_same_network(source: Artifact, graph: Artifact) -> None:
    """What a graph says of its network is what its checkpoint says, but for what an export may choose."""
    chosen = {name: getattr(graph.spec, name) for name in CHOSEN}
    if dataclasses.replace(source.spec, **chosen) != graph.spec:
        raise InvalidFileError(
            f"{graph.path} says otherwise than {source.path} what its network is (classes, colours, normalisation).",
            f"Export it again: segdeploy export --model {graph.spec.name}",
        )


def _engine_stage(file: Artifact, engine: Engine | None, options: ProofOptions) -> StageRun:
    reason = None if engine else f"no runtime on this machine computes the {file.form or file.precision} form"
    batches = options.batches or batches_of(file)
    return stages.engine_stage(engine, reason=reason, batches=() if file.has_random_weights else batches)


def batches_of(file: Artifact) -> tuple[int, ...]:
    """How many images at once a file is made for: of a plan its optimum, its largest, and one that a graph pads."""
    if file.plan is None:
        return stages.GRAPH_BATCHES
    most = file.plan.options.max_batch
    return tuple(sorted({file.plan.options.opt_batch, most, max(1, most - 1)} - {1}))


def reference_of(graph: Artifact) -> Reference:
    """What the masks of a graph are compared with: its checkpoint in PyTorch, or the file that it was adopted from."""
    foreign = graph.origin.foreign
    if foreign is not None:
        return original_reference(workspace.original_of(graph), foreign, graph.spec)
    source = workspace.checkpoint_of(graph)
    _require_same_network(source, graph)
    return _kept_reference(source.path, source.sha256, source.spec.to_json(), graph.spec.to_json())


def original_reference(path: Path, foreign: ForeignOrigin, spec: Spec) -> Reference:
    """The file of somebody else, run by what its kind is run by, and read as its origin says."""
    return _kept_original(path, foreign.kind, foreign.sha256, spec.to_json(), foreign.reading)


@functools.lru_cache(maxsize=1)
def _kept_original(path: Path, kind: ForeignKind, _sha256: str, spec: str, reading: GraphReading) -> Reference:
    """Several engines of one network are compared with the same masks: the original draws them once."""
    if kind == "ONNX":
        kept: Reference = with_torch.onnx_reference().OnnxReference(path, Spec.from_json(spec), reading)
    else:
        kept = with_torch.module_reference().of_file(path, Spec.from_json(spec), reading)
    return kept


@functools.lru_cache(maxsize=1)
def _kept_reference(path: Path, _sha256: str, made_as: str, spec: str) -> "TorchReference":
    """Several engines of one network are compared with the same masks: PyTorch draws them once."""
    reference = with_torch.torch_reference()
    network = opening.load(path, Spec.from_json(made_as))
    kept: TorchReference = reference.TorchReference(network, Spec.from_json(spec))
    return kept


def _stages(graph: Artifact, engine: StageRun, *, with_graph: bool) -> list[StageRun]:
    if graph.precision is not Precision.FP32:
        runs: list[StageRun] = with_torch.quantization().stages(graph, workspace.fp32_graph_of(graph), engine)
        return runs
    return [*([_graph_stage(graph)] if with_graph else []), engine]


def _graph_stage(graph: Artifact) -> StageRun:
    import onnx

    search = with_torch.quantization()
    kept = FLOAT32 if graph.precision is Precision.FP32 else search.low_precision_of(graph).budget.limits()
    stage: StageRun = search.graph_stage("graph", graph, onnx.load(graph.path), kept)
    return stage


# A proof with a kit


def by_kit(
    file: Artifact, found_kit: Kit, engine: Engine | None, *, options: ProofOptions = DEFAULT, progress: Progress
) -> Certificate:
    """The certificate of an engine, or of a graph in its own arithmetic, by the masks of a proof kit."""
    run = _graph_stage(file) if engine is None else _engine_stage(file, engine, options)
    run = dataclasses.replace(run, limits=found_kit.header.limits)
    found = stages.certify(file, found_kit.reference(), [run], found_kit, progress=progress)
    return dataclasses.replace(
        found,
        selected_among=found_kit.header.selected_among,
        inconclusive_allowed=options.allow_inconclusive or found_kit.header.inconclusive_allowed,
    )


def write_kit(graph: Artifact, pictures: Sequence[Picture]) -> None:
    """Write the proof kit of a graph beside it, signed, from the images it was proven on."""
    proof = graph.certificate
    if proof is None or not proof.gated:
        return
    header = kit.Header(
        spec=graph.spec.to_dict(),
        weights_sha256=graph.origin.network_sha256,
        precision=graph.precision,
        limits=proof.limits,
        names=(),
        has_truth=(),
        selected_among=proof.selected_among,
        inconclusive_allowed=proof.inconclusive_allowed,
    )
    content = kit.to_bytes(header, reference_of(graph), FileSamples(pictures, graph.spec))
    signature.publish_file(kit.path_of(graph.path), content)


def copy_kit(graph: Artifact, plan: Artifact) -> None:
    """Put the proof kit of a graph, once it counts here, beside the plan that was built from it."""
    if claims.kit_of(graph) is not None:
        content = artifact.bounded(kit.path_of(graph.path), kit.MOST_BYTES)
        signature.publish_file(kit.path_of(plan.path), content)


# What is kept, and what is refused


def keep(file: Artifact, found: Certificate, asked: Certificate | None = None) -> Artifact:
    """The same file with its certificate, in the manifest that is then signed again.

    `asked`: the verdict under limits that a caller gave; it is kept beside, and lifts no refusal. A refusal on more
    images stays. What somebody else signed is not signed here: the proof is kept among those made on this machine.
    """
    if _refused_on_more(file.certificate, found):
        log.warning("%s failed on more images than these: that verdict stays.", file.path)
        return file
    kept = dataclasses.replace(file, certificate=found, certificate_as_asked=asked)
    if file.kind == "plan" and signature.is_signed(file.path):
        signature.publish(kept)
    elif file.kind == "graph" and (_is_all_checked(found, file) or claims.admitted(file)):
        signature.publish_graph(kept)
    else:
        stage = found.engine
        opened = EngineFile(file, engines.REFERENCE if stage is None else str(stage.runtime), file.precision, "cpu")
        claims.keep_here(opened, "cpu" if stage is None else str(stage.device), found)
        log.warning(
            "The manifest of %s is not signed with a key of this user: the proof is kept here alone.", file.path
        )
    return kept


def _refused_on_more(before: Certificate | None, found: Certificate) -> bool:
    return before is not None and before.refutes and found.passed and before.images > found.images


def _is_all_checked(found: Certificate, graph: Artifact) -> bool:
    """Whether a proof has checked all that the manifest of a graph claims: its checkpoint, its Spec, its masks."""
    return graph.precision is Precision.FP32 and found.reference in {"PyTorch", "ONNX Runtime"}


def require_not_refuted(file: Artifact, runtime: str | None = None, device: str = "cpu") -> None:
    """A graph that failed its proof can be looked into and timed, but draws no masks for anybody.

    An engine that failed in another runtime, or on another processor, says nothing of this one: `runtime` on `device`.
    """
    for found in claims.counting(file):
        of_engine = found.failing is not None and found.failing.name.startswith(ENGINE)
        if found.refutes and not (of_engine and runtime is not None and not claims.is_of(found, runtime, device)):
            require_passed(found, file)


def drawn_by(found: Certificate) -> str:
    """Whose masks an engine was compared with, as a sentence says it."""
    return "the original's" if found.reference == "ONNX Runtime" else "PyTorch's"


def require_passed(found: Certificate, graph: Artifact) -> None:
    """Raise GateFailedError, with the stage and the reason, where a certificate does not say that the masks are right.

    What random weights draw is not judged.
    """
    if not found.gated or found.proves:
        return
    if found.passed:
        raise limits.inconclusive(graph.path, found.inconclusive or "")
    reason = "" if found.failing is None else found.failing.reason
    since = f"from the stage {found.first_failing_stage!r} on"
    look = f", or see where: segdeploy parity --model {graph.path} --engine {graph.precision} --bisect"
    raise GateFailedError(
        f"{graph.path} does not draw {drawn_by(found)} masks {since}: {reason}.",
        f"Give another --size{look if departures.can_look_into(graph) else '.'}",
    )
