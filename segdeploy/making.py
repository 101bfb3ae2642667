"""Checkpoint, graph, engine: the current one, else made and proven."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy import (
    admission,
    artifact,
    certificate,
    claims,
    engines,
    fitting,
    importing,
    proving,
    random_weights,
    signature,
    with_torch,
    workspace,
)
from segdeploy import precision as precisions
from segdeploy.artifact import Artifact
from segdeploy.checkpoints import checkpoint, opening
from segdeploy.checkpoints.foreign import ImportOptions
from segdeploy.data import check
from segdeploy.data.dataset import DataFolder, Picture
from segdeploy.engines import BuildOptions, EngineFile
from segdeploy.errors import InvalidRequestError
from segdeploy.names import below
from segdeploy.paths import hold_paths
from segdeploy.progress import Progress, silent
from segdeploy.proof import kit
from segdeploy.proving import ProofOptions
from segdeploy.spec import Fit, Precision, Spec
from segdeploy.target import Target
from segdeploy.workspace import DEFAULT_MODEL, ENGINES, EXPORTS, Weights

if TYPE_CHECKING:
    from segdeploy.quantization.recipes import Recipe
    from segdeploy.quantization.search import Quantizer
    from segdeploy.quantization.sensitivity import SensitivityReport

log = logging.getLogger("segdeploy")


def find(
    model: str | None, engine: str, device: str, progress: Progress = silent, *, options: "ExportOptions | None" = None
) -> EngineFile:
    """What an engine's name means here; where it leaves the runtime open, the best one, and the log says why.

    `options`: how a graph that is missing is made.
    """
    options = options or EXPORT
    name = engines.parse(engine)
    runtime, why = name.runtime, None
    if runtime is None and model is not None and model.endswith(".plan"):
        runtime = workspace.runtime_of(signature.read_manifest(Path(model)))
    if runtime is None:
        runtime, device, why = _best_runtime(model, name.precision, device, options, progress)
    elif engines.modules()[runtime].OPENS != "plan":
        engines.modules()[runtime].import_runtime()  # what is not here is said before the work
    file = file_for(model, runtime, name.precision, options=options, progress=progress)
    if why is not None:
        log.info("%s runs in %s on %s: %s.", name.precision, runtime, device, why)
    return EngineFile(file, runtime, name.precision, device)


def _best_runtime(
    model: str | None, wanted: Precision, device: str, options: "ExportOptions", progress: Progress
) -> tuple[str, str, str | None]:
    """The best usable runtime, its device and why; for a form that no runtime here is for, ONNX Runtime."""
    from segdeploy.timing import runtime_selection

    found = runtime_selection.candidates(device)
    if model is not None and model.endswith(".onnx") and (form := artifact.read(Path(model)).form) is not None:
        exact = [each for each in found if form == engines.modules()[each.runtime].FORM]
        if all(each.obstacle for each in exact):
            return engines.REFERENCE, device, None
        found = exact
    usable = runtime_selection.usable(found)
    selected = runtime_selection.without_timing(usable)
    if selected is None:
        files = {
            each.runtime: file_for(model, each.runtime, wanted, options=options, progress=progress) for each in usable
        }
        selected = runtime_selection.fastest(files, progress=progress)
    return selected.runtime, selected.device, selected.why


def file_for(
    model: str | None,
    runtime: str,
    wanted: Precision,
    *,
    options: "ExportOptions | None" = None,
    progress: Progress = silent,
) -> Artifact:
    """What a runtime opens for a model: the checkpoint (at the graph's size, where there is one), graph or plan."""
    module = engines.modules()[runtime]
    if module.OPENS == "plan":
        return _plan_for(model, runtime, wanted, progress)
    if module.OPENS == "graph":
        return graph_for(model, wanted, form=_form(runtime, wanted), options=options, progress=progress)
    if wanted is not Precision.FP32:
        raise InvalidRequestError(f"{runtime} is the reference, in fp32.", "Choose another runtime, such as ort.")
    graph = workspace.current_graph(model, Precision.FP32, None)
    if graph is None:
        return workspace.weights_for(model or DEFAULT_MODEL).checkpoint
    spec = dataclasses.replace(graph.spec, output="class_map")
    return dataclasses.replace(workspace.checkpoint_of(graph), spec=spec)


def graph_behind(opened: EngineFile, model: str | None, progress: Progress) -> Artifact:
    """The graph that an engine's certificate is about: the one it opens, was built from, or is the reference of."""
    if opened.file.kind == "checkpoint":
        return graph_for(model, progress=progress)
    return workspace.graph_behind(opened.file)


def _form(runtime: str, wanted: Precision) -> str | None:
    """The form of the graph that a runtime takes, where graphs of that precision have several."""
    if wanted is Precision.FP32 or not precisions.module(wanted).FORMS:
        return None
    return engines.modules()[runtime].FORM


# Plans


def _plan_for(model: str | None, runtime: str, wanted: Precision, progress: Progress) -> Artifact:
    """The plan for this machine's GPU; built where it is missing, and again where its graph is another one now.

    A plan whose graph is not at hand is taken as it is: a machine that only runs it has neither graph nor PyTorch.
    """
    if model is not None and model.endswith(".plan"):
        return workspace.plan_of_engine(signature.read_manifest(Path(model)), runtime, wanted)
    name = model or workspace.newest_export() or DEFAULT_MODEL
    options = engines.BUILD
    if not name.endswith(".onnx") and (plan := workspace.plan_for(name, runtime, wanted)) is not None:
        if workspace.is_current(plan):
            return plan
        options = signature.facts_of(plan).options
    return build(name, engine=f"{runtime}:{wanted}", options=options, progress=progress)


def build(
    model: str | None = None,
    *,
    engine: str,
    options: BuildOptions = engines.BUILD,
    progress: Progress = silent,
) -> Artifact:
    """Compile a plan into `engines/`, signed, and prove it where this machine has the GPU for it.

    A runtime that compiles nothing gives the graph or the checkpoint that it opens.
    """
    name = engines.parse(engine)
    if name.runtime is None:
        raise InvalidRequestError(
            f"{engine!r} names no runtime to build for.", f"Give it, such as trt:{name.precision}."
        )
    if engines.modules()[name.runtime].OPENS != "plan":
        return file_for(model, name.runtime, name.precision, progress=progress)
    compiling = engines.compiling(name.runtime)
    _require_capable(compiling.target(options), name.precision)  # what cannot be met is said before the work
    signature.make_key()
    graph = graph_for(model, name.precision, form=_form(name.runtime, name.precision), progress=progress)
    graph = admission.proof_of_graph(graph, progress=progress)
    plan = compiling.compile(graph, ENGINES, options, progress=progress)
    proving.copy_kit(graph, plan)
    target = signature.facts_of(plan).target
    if target.gpu is None:
        reason = f"there is no GPU of compute capability {target.compute_capability} here"
        plan = dataclasses.replace(plan, certificate=certificate.without_engine(graph.certificate, reason))
        signature.publish(plan)
        return plan
    return _proven_plan(plan, graph, progress)


def _proven_plan(plan: Artifact, graph: Artifact, progress: Progress) -> Artifact:
    """A plan that can run here, compared with its proof kit, or with PyTorch where it has none."""
    opened = EngineFile(plan, workspace.runtime_of(plan), plan.precision, "cuda")
    found_kit = claims.kit_of(plan)
    if found_kit is None:
        allowed = graph.certificate is not None and graph.certificate.inconclusive_allowed
        asked = ProofOptions(allow_inconclusive=allowed)
        pictures = workspace.proof_images_of(graph)
        found = proving.judge(graph, opened, pictures, options=asked, progress=progress)
    else:
        with engines.open_engine(plan, runtime=opened.runtime, device=opened.device) as engine:
            found = proving.by_kit(plan, found_kit, engine, progress=progress)
    plan = proving.keep(plan, found)
    proving.require_passed(found, plan)
    return plan


def _require_capable(target: Target, wanted: Precision) -> None:
    least = None if wanted is Precision.FP32 else precisions.module(wanted).LEAST_COMPUTE_CAPABILITY
    if least is not None and float(target.compute_capability) < float(least):
        raise InvalidRequestError(
            f"{wanted} needs compute capability {least} or more, the target has {target.compute_capability}.",
            "Build fp16 or int8 for it, or fp8 for a newer GPU: --compute-capability",
        )


# Graphs


def graph_for(
    model: str | None,
    wanted: Precision = Precision.FP32,
    *,
    form: str | None = None,
    options: "ExportOptions | None" = None,
    progress: Progress = silent,
) -> Artifact:
    """The graph of a model, made and proven where it is missing or not of what it would be made from now."""
    known = workspace.current_graph(model, wanted, form)
    if known is not None:
        return known
    name = model or workspace.newest_export() or DEFAULT_MODEL
    asked = dataclasses.replace(options or EXPORT, forms=(form,) if form else ())
    (graph,) = export(name, precision=wanted, options=asked, progress=progress)
    return graph


@dataclasses.dataclass(frozen=True, slots=True)
class ExportOptions:
    """What a graph is made from, and, in low precision, what may be lost on the way.

    `weights`: a checkpoint, also a foreign one, or "random"; None takes what training or import left, else what comes
    with the package. `name`: what foreign weights are called and kept as; None keeps none. `size`: (height, width) of
    the network's input. `variant`: how an untrained network is built, or conventions that a foreign checkpoint does not
    tell. `output`: class_map or logits. `fit` and `overlap`: how photographs meet the network, as in `Spec`; None keeps
    what the weights say.
    `data`: images that prove, and in low precision decide what stays in float32; with masks, mIoU counts. `force` lets
    warnings about its labels pass. Without `data`, packaged weights are proven on packaged images, and own weights on
    those that training validated on. `allow_inconclusive` lets a proof count that could not have failed. `proof_kit`:
    write the images of the proof, with the masks that are right there, into a file beside the graph, so that other
    machines can prove it.

    In low precision: `forms` of int8, all where none is named. `calibrate`: a folder of images whose activations set
    the ranges; `method` clips them; `cache`: a calibration cache of TensorRT in their place. `max_drop`: points of
    mIoU; `min_agreement`: share of the pixels that PyTorch decides. None takes what the precision has by default.
    """

    weights: Path | str | None = None
    name: str | None = None
    size: tuple[int, int] | None = None
    variant: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    output: str = "class_map"
    fit: Fit | None = None
    overlap: int | None = None
    data: DataFolder | Path | None = None
    force: bool = False
    allow_inconclusive: bool = False
    proof_kit: bool = True
    forms: Sequence[str] = ()
    calibrate: Path | None = None
    method: str | None = None
    cache: Path | None = None
    min_agreement: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        hold_paths(self, "data", "calibrate", "cache")

    def names_a_network(self) -> bool:
        """Whether another float32 graph may be meant than the one at hand."""
        return bool(self.weights or self.size or self.variant or self.fit or self.overlap is not None)

    def budget(self) -> dict[str, float]:
        """The limits that were given; the others are the precision's own."""
        given = {"min_agreement": self.min_agreement, "max_drop": self.max_drop}
        return {name: value for name, value in given.items() if value is not None}


EXPORT = ExportOptions()


def export(
    model: str | None,
    *,
    precision: Precision = Precision.FP32,
    options: ExportOptions = EXPORT,
    progress: Progress = silent,
) -> list[Artifact]:
    """Write the graphs of a model into `export/`, each proven: one, or one for each form of int8.

    Raise GateFailedError where a graph is not the same network, or not inside the budget. A failed float32 graph stays
    in place with its certificate; of low precision, an earlier graph stays in place.
    """
    if precision is Precision.FP32 or options.names_a_network():
        workspace.require_own(model)
    name, options = _named(model, options)
    if precision is Precision.FP32:
        return [_export_fp32(name, options, progress)]
    return _quantize(name, precision, options, progress)


def _export_fp32(model: str, options: ExportOptions, progress: Progress) -> Artifact:
    from segdeploy.graphs.to_onnx import to_onnx

    engines.modules()[engines.REFERENCE].import_runtime()  # the proof is no option: say so before the work
    source = weights_for(model, options)
    check.require_for(source.checkpoint, options.data, force=options.force, progress=progress)
    spec = source.checkpoint.spec
    network = opening.load(source.checkpoint.path, spec)
    pictures = _pictures_for(source, options)
    height, width = options.size or (spec.height, spec.width)
    fields = {**dataclasses.asdict(spec), "height": height, "width": width, "output": options.output, "name": model}
    suffix = "" if options.output == "class_map" else f".{options.output}"
    with progress(f"Exporting {model}", 1) as done:
        path = below(EXPORTS, f"{model}.fp32{suffix}.onnx")
        exported = fitting.with_fit(Spec(**fields), options.fit, options.overlap)
        graph = to_onnx(network, exported, path, weights=source.origin_in(EXPORTS))
        done()
    opened = EngineFile(graph, engines.REFERENCE, Precision.FP32, "cpu")
    asked = ProofOptions(allow_inconclusive=options.allow_inconclusive)
    found = proving.judge(graph, opened, pictures, options=asked, progress=progress)
    proven = proving.keep(graph, found)
    proving.require_passed(found, proven)
    _write_kit(proven, pictures, options)
    return proven


def _pictures_for(source: Weights, options: ExportOptions) -> list[Picture]:
    """What a float32 graph is proven on: the validation images of `data`, some that calibrate, or the weights' own."""
    if source.kind == "random" or (options.data is None and options.calibrate is None):
        return workspace.proof_images(source)
    if options.data is not None:
        return workspace.pictures_of(options.data)
    from segdeploy.quantization import images_in_parts

    files = images_in_parts.images_in(options.calibrate) if options.calibrate is not None else []
    return [Picture(file, None) for file in files[: workspace.PROOF_IMAGES]]


def _write_kit(graph: Artifact, pictures: Sequence[Picture], options: ExportOptions) -> None:
    """The proof kit of a graph, or none, and none of an earlier graph either."""
    if options.proof_kit:
        proving.write_kit(graph, pictures)
    else:
        kit.path_of(graph.path).unlink(missing_ok=True)


def _quantize(model: str, wanted: Precision, options: ExportOptions, progress: Progress) -> list[Artifact]:
    """The graph of low precision, or the int8 graph in each form, inside the budget and proven."""
    if options.names_a_network():
        fp32 = _export_fp32(model, options, progress)
    else:
        fp32 = _proven_fp32(model, options, progress)
    quantizer, recipes = _quantizer(fp32, wanted, options, progress)
    from segdeploy.proof import executed

    make = quantizer.measured if fp32.has_random_weights else quantizer.within_budget
    made = [executed.recorded(make(recipe)) for recipe in recipes]
    for graph in made:
        _write_kit(graph, quantizer.parts.prove, options)
    return made


def _proven_fp32(model: str | None, options: ExportOptions, progress: Progress) -> Artifact:
    """The float32 graph at hand, made where there is none, with a proof that counts here."""
    of_fp32 = ExportOptions(
        data=options.data,
        calibrate=options.calibrate,
        force=options.force,
        allow_inconclusive=options.allow_inconclusive,
        proof_kit=options.proof_kit,
    )
    return admission.proof_of_graph(graph_for(model, options=of_fp32, progress=progress), progress=progress)


def _quantizer(
    fp32: Artifact, wanted: Precision, options: ExportOptions, progress: Progress
) -> "tuple[Quantizer, list[Recipe]]":
    search = with_torch.quantization()
    check.require_for(fp32, options.data, force=options.force, progress=progress)
    from segdeploy.quantization import images_in_parts, recipes

    at_hand = workspace.images_at_hand(fp32, calibrate=options.calibrate, data=options.data)
    parts = images_in_parts.parts_of(at_hand=at_hand, calibrate=options.calibrate, data=options.data)
    if fp32.has_random_weights:
        some = parts.prove[: workspace.RANDOM_PROOF_IMAGES]
        parts = dataclasses.replace(parts, calibrate=parts.calibrate[: random_weights.STATISTICS], prove=some)
    budget = dataclasses.replace(precisions.module(wanted).BUDGET, **options.budget())
    made = recipes.recipes(
        fp32, wanted, options.forms, parts, method=options.method, cache=options.cache, progress=progress
    )
    quantizer = search.Quantizer(
        parts, budget, proving.reference_of(fp32), allow_inconclusive=options.allow_inconclusive, progress=progress
    )
    return quantizer, made


def sensitivity(
    model: str | None,
    *,
    precision: Precision = Precision.INT8,
    options: ExportOptions = EXPORT,
    progress: Progress = silent,
) -> "SensitivityReport":
    """What each layer gives back when it alone is float32, and what that costs: the most for its cost first."""
    from segdeploy.quantization.sensitivity import SensitivityReport

    fp32 = _proven_fp32(model, options, progress)
    quantizer, recipes = _quantizer(fp32, precision, options, progress)
    recipe = recipes[-1]
    search = quantizer.search(recipe)
    ranking = quantizer.ranking(recipe, search)
    return SensitivityReport(
        model=fp32.spec.name,
        precision=precision,
        form=recipe.form,
        images=len(quantizer.parts.rank),
        all_low=search.quality(),
        always_float=recipe.layers.in_float,
        cost_unit="multiply-adds" if search.quality().ms is None else "ms",
        layers=tuple(ranking),
        record=search.record.path,
    )


# Weights


def weights_for(model: str, options: ExportOptions) -> Weights:
    """The checkpoint that the options name: a file, an untrained network, or what is here."""
    if options.weights == "random":
        path = random_weights.checkpoint_of(model, options.variant, options.size or random_weights.SIZE)
        return Weights("random", checkpoint.read(path))
    given = None if options.weights is None else Path(options.weights)
    if options.variant and (given is None or checkpoint.is_ours(given)):
        what = "--option builds a new network; trained weights have theirs."
        raise InvalidRequestError(what, "Leave it out, or add --weights random.")
    return workspace.weights_for(model, given, ImportOptions(variant=options.variant))


def _named(model: str | None, options: ExportOptions) -> tuple[str, ExportOptions]:
    """What the graph is called, and the options for it: foreign weights that get a name are then at hand under it."""
    given = None if options.weights in {None, "random"} else Path(str(options.weights))
    how = ImportOptions(size=options.size, variant=options.variant)
    name = importing.name_of(model, given, options.name, how)
    kept = dataclasses.replace(options, weights=None, variant={}, name=None)
    return name, options if options.name is None else kept
