"""A float32 graph becomes one of low precision inside an accuracy budget, proven on images that took no other part."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence

import onnx

from segdeploy import artifact, precision, signature, typed_json
from segdeploy._version import __version__
from segdeploy.artifact import Artifact
from segdeploy.certificate import ENGINE, Certificate, Limits, Stage
from segdeploy.data.dataset import Picture
from segdeploy.engines import Engine, ort
from segdeploy.errors import GateFailedError, InvalidFileError
from segdeploy.low_precision import Budget, LowPrecision
from segdeploy.progress import Progress
from segdeploy.proof import finite
from segdeploy.proof.limits import FLOAT32, inconclusive
from segdeploy.proof.reference import Reference
from segdeploy.proof.samples import FileSamples
from segdeploy.proof.stages import FP32_STAGE, GRAPH_BATCHES, Judge, StageRun, certify, engine_stage
from segdeploy.quantization.images_in_parts import Parts
from segdeploy.quantization.recipes import Recipe
from segdeploy.quantization.sensitivity import Quality, Record, Search, Sensitivity
from segdeploy.spec import Precision

LEAST_LOW_SHARE = 0.5  # of all multiply-adds
NAMED = 5  # layers in a message


def executor(graph: Artifact, model: onnx.ModelProto) -> Engine:
    """A graph of low precision in the arithmetic that is the graph's own, whatever this machine computes best."""
    spelled_out, optimised = arithmetic(graph, model, as_written=False)
    return ort.open(graph, device="cpu", optimised=optimised, graph=spelled_out.SerializeToString())


def graph_stage(name: str, graph: Artifact, model: onnx.ModelProto, limits: Limits) -> StageRun:
    """A graph as it is written, in its own arithmetic, its logits watched."""
    spelled_out, optimised = arithmetic(graph, model, as_written=True)
    copy = finite.watched(spelled_out).SerializeToString()
    return StageRun(
        name,
        ort.open(graph, device="cpu", optimised=optimised, graph=copy, watching=True),
        limits,
        locate=functools.partial(finite.first_layer_not_finite, spelled_out, optimised=optimised),
    )


def arithmetic(graph: Artifact, model: onnx.ModelProto, *, as_written: bool) -> tuple[onnx.ModelProto, bool]:
    """A graph spelled so that ONNX Runtime computes what it says, and whether it may optimise that.

    What the precision's file spells out may be optimised. A form that ONNX Runtime is no target of runs node by node,
    for no fusion here is that target's; its own form runs as its users get it, or node by node where `as_written`.
    float32 runs node by node.
    """
    if graph.precision is Precision.FP32:
        return model, False
    spelled_out = precision.module(graph.precision).executable(model)
    return spelled_out, spelled_out is not model or (graph.form == ort.FORM and not as_written)


def stages(graph: Artifact, fp32: Artifact, engine: StageRun, model: onnx.ModelProto | None = None) -> list[StageRun]:
    """The chain of a graph of low precision: the float32 graph, this one in its own arithmetic, the engine.

    `model` is the graph where it is not written yet.
    """
    limits = low_precision_of(graph).budget.limits()
    return [
        graph_stage(FP32_STAGE, fp32, onnx.load(fp32.path), FLOAT32),
        graph_stage("graph", graph, model or onnx.load(graph.path), limits),
        dataclasses.replace(engine, limits=limits),
    ]


def low_precision_of(graph: Artifact) -> LowPrecision:
    """How a graph became one of low precision. Raise InvalidFileError where its manifest does not say."""
    if graph.low_precision is None:
        raise InvalidFileError(f"{graph.path} has no budget in its manifest.", "Export it again.")
    return graph.low_precision


def search_for(recipe: Recipe, judge: Judge, rank: Sequence[Picture], budget: Budget) -> Search:
    """The search for the layers that stay in float32; its record lies beside the graph, and an earlier one is used."""

    def measure(in_float: frozenset[str]) -> Quality:
        model = recipe.build(in_float)
        with executor(recipe.unmeasured, model) as engine:
            found = judge.measure(engine)
        return Quality(found.agreement, found.miou_drop, found.ms if recipe.form == ort.FORM else None)

    path = recipe.path.with_suffix(".pareto.json")
    record = Record(path, _key(recipe, rank), recipe.low_share)
    return Search(measure, recipe.layers.work, budget, record=record, always=recipe.layers.in_float)


def _key(recipe: Recipe, rank: Sequence[Picture]) -> str:
    """A name for all that the measurements of a search depend on."""
    files = [sha256 for picture in rank for sha256 in (artifact.sha256(picture.image), picture.mask_sha256)]
    hashes = [sha256 for sha256 in files if sha256 is not None]
    ranges = typed_json.to_builtins(recipe.calibration)
    facts = [__version__, recipe.fp32.sha256, recipe.path.name, ranges, sorted(recipe.layers.in_float), hashes]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class Quantizer:
    """Everything the graphs of one export share: the images that decide and prove, the reference, the budget."""

    def __init__(
        self,
        parts: Parts,
        budget: Budget,
        reference: Reference,
        *,
        allow_inconclusive: bool = False,
        progress: Progress,
    ) -> None:
        self.parts = parts
        self.budget = budget
        self._reference = reference
        self._allow_inconclusive = allow_inconclusive
        self._progress = progress

    @functools.cached_property
    def judge(self) -> Judge:
        """The reference's masks of the images that decide: drawn once, for every form."""
        with self._progress(f"Reading {self._reference.spec.name}'s masks", len(self.parts.rank)) as done:
            samples = FileSamples(self.parts.rank, self._reference.spec)
            return Judge(self._reference, samples, done=done)

    def search(self, recipe: Recipe) -> Search:
        return search_for(recipe, self.judge, self.parts.rank, self.budget)

    def ranking(self, recipe: Recipe, search: Search) -> list[Sensitivity]:
        with self._progress(f"Ranking {recipe.path.stem}", len(recipe.layers.work)) as done:
            return search.ranking(done=done)

    def measured(self, recipe: Recipe) -> Artifact:
        """All layers in low precision, with a proof that gates nothing: untrained weights have nothing to lose."""
        in_float = recipe.layers.in_float
        model = recipe.build(in_float)
        graph = recipe.described(in_float, self.budget, model)
        return write(graph, model, self._prove(graph, model, recipe.fp32))

    def within_budget(self, recipe: Recipe) -> Artifact:
        """The first graph whose proof holds. Raise GateFailedError, and leave what was there, where none does."""
        _require_low_layers(recipe)
        search = self.search(recipe)
        reason = None
        steps = search.steps(lambda: self.ranking(recipe, search))
        for candidate, in_float in enumerate(steps, start=1):
            model = recipe.build(in_float)
            graph = recipe.described(in_float, self.budget, model)
            if low_precision_of(graph).low_share < LEAST_LOW_SHARE:
                raise _mostly_float(recipe, graph, reason or "the images that decide ask for it")
            found = self._prove(graph, model, recipe.fp32)
            found = dataclasses.replace(found, selected_among=candidate)
            if found.proves:
                search.record.accept(in_float)
                return write(graph, model, found)
            if found.passed:
                raise inconclusive(recipe.path, found.inconclusive or "")
            failed = found.failing or Stage(name=ENGINE)
            reason = f"stage {failed.name!r}: {failed.reason}"
            if failed.name == FP32_STAGE:
                break
        raise GateFailedError(
            f"{recipe.path} cannot be made inside the budget: "
            f"{reason or 'no choice of float32 layers keeps to it on the images that decide'}.",
            "Spare more (--max-drop, --min-agreement), or calibrate on images like its own (--calibrate DIR).",
        )

    def _prove(self, graph: Artifact, model: onnx.ModelProto, fp32: Artifact) -> Certificate:
        runs_here = graph.form in {None, ort.FORM}
        engine = ort.open(graph, device="cpu", graph=_bytes_of(model)) if runs_here else None
        reason = None if engine else f"no runtime on this machine computes the {graph.form} form"
        last = engine_stage(engine, reason=reason, batches=() if graph.has_random_weights else GRAPH_BATCHES)
        samples = FileSamples(self.parts.prove, self._reference.spec)
        runs = stages(graph, fp32, last, model)
        found = certify(graph, self._reference, runs, samples, progress=self._progress)
        return dataclasses.replace(found, inconclusive_allowed=self._allow_inconclusive)


def _require_low_layers(recipe: Recipe) -> None:
    """Raise GateFailedError where half of the work has no form of low precision, before anything is measured."""
    share = recipe.low_share(recipe.layers.in_float)
    if share < LEAST_LOW_SHARE:
        work = recipe.layers.work
        by_work = sorted(recipe.layers.in_float.items(), key=lambda each: -work[each[0]])
        named = ", ".join(f"{layer} ({why})" for layer, why in by_work[:NAMED])
        raise GateFailedError(
            f"{recipe.path} cannot be made: {share:.1%} of all multiply-adds are in layers that can be of "
            f"{recipe.module.PRECISION}, less than half. In float32 stay {named}.",
            f"Use {'fp32' if recipe.module.PRECISION is Precision.FP16 else 'fp16'}.",
        )


def _mostly_float(recipe: Recipe, graph: Artifact, reason: str) -> GateFailedError:
    """What is raised where a graph would bear the name of a precision that does less than half of its work."""
    low = low_precision_of(graph)
    by_work = sorted(low.in_float, key=lambda layer: -recipe.layers.work[layer])
    more = f" and {len(by_work) - NAMED} more" if len(by_work) > NAMED else ""
    return GateFailedError(
        f"{recipe.path} cannot be made inside the budget: only {low.low_share:.1%} of all multiply-adds would be in "
        f"{graph.precision}, less than half ({reason}). In float32 would stay {', '.join(by_work[:NAMED])}{more}.",
        "Spare more (--max-drop, --min-agreement), calibrate on images like its own (--calibrate DIR), or use "
        f"{'fp32' if graph.precision is Precision.FP16 else 'fp16'}. What each layer costs: segdeploy sensitivity",
    )


def _bytes_of(model: onnx.ModelProto) -> bytes:
    """What stands in the file: what is proven is what is written."""
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def write(graph: Artifact, model: onnx.ModelProto, found: Certificate | None) -> Artifact:
    """The file and its signed manifest; between the two, the file has none and counts as unfinished."""
    with artifact.replacing(graph.path) as temporary:
        temporary.write_bytes(_bytes_of(model))
        artifact.manifest_path(graph.path).unlink(missing_ok=True)
    written = dataclasses.replace(graph, sha256=artifact.sha256(graph.path), certificate=found)
    signature.publish_graph(written)
    return written
