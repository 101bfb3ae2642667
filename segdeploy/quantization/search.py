"""A float32 graph becomes an fp16 or int8 one inside an accuracy budget, proven on images that took no other part."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from segdeploy import artifact, images
from segdeploy._version import __version__
from segdeploy.artifact import Artifact
from segdeploy.data import dataset
from segdeploy.data.dataset import Picture
from segdeploy.engines import Engine, ort
from segdeploy.errors import GateFailedError, InvalidFileError, InvalidRequestError, SegdeployError
from segdeploy.graphs.graph import Graph, convolution_work
from segdeploy.precision import fp16, int8
from segdeploy.progress import Progress
from segdeploy.proof.stages import Judge, NarrowLimits, Reference, Stage
from segdeploy.quantization import calibration
from segdeploy.quantization.sensitivity import Budget, Quality, Record, Search, Sensitivity
from segdeploy.spec import Precision, Spec

if TYPE_CHECKING:
    from segdeploy.quantization.calibration import Batch, Range

BUDGETS = {
    Precision.FP16: Budget(min_agreement=0.999, max_drop=0.05),
    Precision.INT8: Budget(min_agreement=0.98, max_drop=0.5),
}
METHOD = "percentile"  # the one that agreed best over the four networks, on nuclei and on CamVid
NATIVE_FORM = "unsigned"  # the form that ONNX Runtime on this machine computes in int8
FP32_STAGE = "fp32 graph"
MOST_CALIBRATING = 128  # images: more change no range that matters, and calibration walks over them twice
MOST_RANKING = 64  # images: each layer of a ranking is measured on all of them
Report = Callable[[Artifact, Sequence[Stage], Sequence[Picture]], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """How a float32 graph becomes a narrow one, whichever layers stay in float32.

    `work`: the multiply-adds of each layer; `always`: the layers that are float32 in any case, and why.
    """

    fp32: Artifact
    precision: Precision
    form: str | None
    build: Callable[[Collection[str]], onnx.ModelProto]
    work: Mapping[str, int]
    always: Mapping[str, str]
    made_by: Mapping[str, Any]

    @property
    def path(self) -> Path:
        return artifact.graph_path(self.fp32.path.parent, self.fp32.spec.model, self.precision, self.form)

    def narrow_share(self, in_float: Collection[str]) -> float:
        """Of the convolutions' multiply-adds, the share that is narrow."""
        return 1 - sum(self.work[layer] for layer in in_float) / sum(self.work.values())

    def described(self, in_float: Collection[str], budget: Budget) -> Artifact:
        """The manifest of the graph that leaves these layers in float32; the graph is yet to be written."""
        made_by = {
            "command": "export",
            "version": __version__,
            "weights": self.fp32.made_by["weights"],
            "graph": {"path": self.fp32.path.name, "sha256": self.fp32.sha256},
            **self.made_by,
            "budget": dataclasses.asdict(budget),
            "in_float": {layer: self.always.get(layer, "gives accuracy back") for layer in sorted(in_float)},
            "narrow_share": self.narrow_share(in_float),
        }
        return dataclasses.replace(
            self.fp32,
            path=self.path,
            precision=self.precision,
            form=self.form,
            sha256="",
            made_by=made_by,
            made_at=artifact.now(),
            parity=None,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """Which images take which part; those that prove take no other. `skipped`: files that cannot be read, and why."""

    calibrate: Sequence[Path]
    rank: Sequence[Picture]
    prove: Sequence[Picture]
    skipped: Mapping[Path, str] = dataclasses.field(default_factory=dict)


def parts_of(*, packaged: Sequence[Path] | None, calibrate: Path | None, data: Path | None) -> Parts:
    """Divide images by their bytes alone: sorted by sha256, even ones decide and odd ones prove.

    A labelled folder's `val.txt` proves where it has one. `packaged`: the images that come with packaged weights, which
    calibrate where no folder was given for it; where there are none either, what decides calibrates.
    """
    given = packaged if calibrate is None else images_in(calibrate)
    skipped: Mapping[Path, str] = {}
    if data is not None:
        rank, prove = _divided_folder(data)
    elif given is not None:
        readable, skipped = _readable(_distinct(given)[: 2 * max(MOST_CALIBRATING, MOST_RANKING)])
        rank, prove = _divided([Picture(file, None) for file in readable])
        given = None
    else:
        raise InvalidRequestError(
            "there are no images to calibrate, decide and prove on: only packaged weights bring their own.",
            "Give some like those the network will see: segdeploy export --calibrate DIR, or --data DIR with labels.",
        )
    if not rank or not prove:
        raise InvalidRequestError("one image is not enough: some decide, others prove.", "Give at least two images.")
    proving = {artifact.sha256(picture.image) for picture in prove}
    candidates = [picture.image for picture in rank] if given is None else given
    chosen = [file for file in _distinct(candidates) if artifact.sha256(file) not in proving]
    if not chosen:
        raise InvalidRequestError("every calibration image is also a proof image.", "Give others: --calibrate DIR")
    return Parts(chosen[:MOST_CALIBRATING], rank[:MOST_RANKING], prove, skipped)


def images_in(folder: Path) -> list[Path]:
    """The images of a folder, or of its `images/`; of those a `train.txt` names, where there is one."""
    if (folder / "masks").is_dir():
        return [sample.image for sample in dataset.open_folder(folder).train]
    if (folder / "images").is_dir():
        return dataset.image_files(folder)
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in images.EXTENSIONS)
    if not found:
        raise InvalidRequestError(f"{folder} has no images.", "Give a folder of photographs: --calibrate DIR")
    return found


def _divided_folder(data: Path) -> tuple[list[Picture], list[Picture]]:
    if not (data / "masks").is_dir():
        return _divided([Picture(image, None) for image in dataset.image_files(data)])
    labelled = dataset.open_folder(data)
    train, val = ([Picture(sample.image, sample.mask) for sample in part] for part in (labelled.train, labelled.val))
    if (data / "val.txt").is_file() and train:
        proving = {artifact.sha256(picture.image) for picture in val}
        return [picture for sha256, picture in _by_sha256(train) if sha256 not in proving], val
    return _divided([*train, *val])


def _divided(pictures: Sequence[Picture]) -> tuple[list[Picture], list[Picture]]:
    ordered = [picture for _, picture in _by_sha256(pictures)]
    return ordered[::2], ordered[1::2]


def _by_sha256(pictures: Sequence[Picture]) -> list[tuple[str, Picture]]:
    """In the order of their images' bytes; of copies, one."""
    return sorted({artifact.sha256(picture.image): picture for picture in pictures}.items())


def _distinct(files: Sequence[Path]) -> list[Path]:
    return [picture.image for _, picture in _by_sha256([Picture(file, None) for file in files])]


def _readable(files: Sequence[Path]) -> tuple[list[Path], dict[Path, str]]:
    """The files that are images, and why the others are none. Raise InvalidFileError where all are others."""
    skipped = {}
    for file in files:
        try:
            images.read(file)
        except SegdeployError as error:
            skipped[file] = error.what
    readable = [file for file in files if file not in skipped]
    if not readable:
        raise _none_readable(skipped)
    return readable, skipped


def _none_readable(skipped: Mapping[Path, str]) -> InvalidFileError:
    return InvalidFileError(
        f"none of {len(skipped)} calibration images can be read: {next(iter(skipped.values()))}",
        "Give photographs: --calibrate DIR",
    )


class Photographs:
    """Walks over photographs as the network sees them, one at a time; those that cannot be read are left out."""

    def __init__(self, files: Sequence[Path], spec: Spec, skipped: Mapping[Path, str] | None = None) -> None:
        self._files = files
        self._spec = spec
        self.skipped = dict(skipped or {})

    def __len__(self) -> int:
        return len(self._files)

    def __call__(self) -> "Iterator[Batch]":
        for file in self._files:
            try:
                photo = images.read(file)
            except SegdeployError as error:
                self.skipped[file] = error.what
                continue
            yield images.prepared(photo, self._spec)[None]
        if self.skipped.keys() >= set(self._files):
            raise _none_readable(self.skipped)

    def described(self) -> dict[str, Any]:
        """Names and hashes of what was used; what was left out, and why."""
        used = {file.name: artifact.sha256(file) for file in self._files if file not in self.skipped}
        return {"images": used, "skipped": {file.name: reason for file, reason in self.skipped.items()}}


def recipes(
    fp32: Artifact,
    precision: Precision,
    forms: Sequence[str],
    parts: Parts,
    *,
    method: str | None,
    cache: Path | None,
    progress: Progress,
) -> list[Recipe]:
    """One for each graph that was asked for; all int8 forms come from one calibration."""
    if precision is Precision.FP16 and (forms or method or cache):
        raise InvalidRequestError("fp16 has no form and no calibration.", "Leave those options to --precision int8.")
    if cache is not None and method is not None:
        raise InvalidRequestError("a calibration cache has its method in it.", "Give --calibration-cache alone.")
    photographs = Photographs(parts.calibrate, fp32.spec, parts.skipped)
    if precision is Precision.FP16:
        return [half_recipe(fp32, photographs, progress=progress)]
    wanted = list(dict.fromkeys(forms)) or list(int8.FORMS)
    if cache is not None:
        return int8_recipes_from_cache(fp32, wanted, cache)
    return int8_recipes(fp32, wanted, photographs, method=method or METHOD, progress=progress)


def half_recipe(fp32: Artifact, photographs: Photographs, *, progress: Progress) -> Recipe:
    """Float32 islands where a value that real images reach is above half of what a half holds."""
    model = onnx.load(fp32.path)
    with progress(f"Measuring the range of {fp32.spec.model}", len(photographs)) as done:
        extremes = calibration.extremes(model, fp16.tensors(model), photographs, done=done)
    convolutions = convolution_work(Graph(model))
    beyond = fp16.beyond_range(model, extremes)
    return Recipe(
        fp32=fp32,
        precision=Precision.FP16,
        form=None,
        build=lambda in_float: fp16.to_half(model, in_float=in_float),
        work={name: convolutions.get(name, 0) for name in fp16.nodes(model)},
        always={name: f"reaches {largest:.4g}, above {fp16.LARGEST:g}" for name, largest in beyond.items()},
        made_by={"range": photographs.described()},
    )


def int8_recipes(
    fp32: Artifact, forms: Sequence[str], photographs: Photographs, *, method: str, progress: Progress
) -> list[Recipe]:
    """One recipe for each form, from one calibration."""
    model = onnx.load(fp32.path)
    with progress(f"Calibrating {fp32.spec.model}", 2 * len(photographs)) as done:
        ranges = calibration.collect(model, int8.tensors(model), photographs, done=done).by(method)
    made_by = {"calibration": {"method": method, **photographs.described()}}
    return [_int8_recipe(fp32, model, form, ranges, made_by) for form in forms]


def int8_recipes_from_cache(fp32: Artifact, forms: Sequence[str], cache: Path) -> list[Recipe]:
    """The same from an old calibration cache of TensorRT."""
    model = onnx.load(fp32.path)
    ranges = calibration.from_cache(_text(cache), model, int8.tensors(model))
    made_by = {"calibration": {"method": "cache", "cache": {cache.name: artifact.sha256(cache)}}}
    return [_int8_recipe(fp32, model, form, ranges, made_by) for form in forms]


def _int8_recipe(
    fp32: Artifact, model: onnx.ModelProto, form: str, ranges: "Mapping[str, Range]", made_by: Mapping[str, Any]
) -> Recipe:
    return Recipe(
        fp32=fp32,
        precision=Precision.INT8,
        form=form,
        build=lambda in_float: int8.quantize(model, ranges, form=form, in_float=in_float),
        work=convolution_work(Graph(model)),
        always={},
        made_by=made_by,
    )


def _text(cache: Path) -> str:
    try:
        return cache.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidFileError(f"cannot read the calibration cache {cache}: {error}.", "Give a text file.") from error


def executor(graph: Artifact, model: onnx.ModelProto, *, as_written: bool = False) -> Engine:
    """A narrow graph in the arithmetic that is the graph's own, whatever this machine computes best."""
    spelled_out, optimised = arithmetic(graph, model, as_written=as_written)
    return ort.open(graph, device="cpu", optimised=optimised, graph=spelled_out.SerializeToString())


def arithmetic(graph: Artifact, model: onnx.ModelProto, *, as_written: bool) -> tuple[onnx.ModelProto, bool]:
    """A graph spelled so that ONNX Runtime computes what it says, and whether it may optimise that.

    fp16 rounds after every node. The signed form runs node by node: no fusion here is TensorRT's. The unsigned form
    runs as its users get it, or node by node where that is asked for; float32 runs node by node.
    """
    is_half = graph.precision is Precision.FP16
    spelled_out = fp16.rounded_in_float(model) if is_half else model
    return spelled_out, is_half or (graph.form == NATIVE_FORM and not as_written)


def stages(graph: Artifact, fp32: Artifact, engine: Engine | None, model: onnx.ModelProto | None = None) -> list[Stage]:
    """The chain of a narrow graph: the float32 graph, the narrow one in its own arithmetic, the engine.

    `model` is the narrow graph where it is not written yet.
    """
    model = model or onnx.load(graph.path)
    limits = NarrowLimits(**graph.made_by["budget"])
    reason = None if engine else f"no runtime on this machine runs the {graph.form} form exactly"
    return [
        Stage(FP32_STAGE, ort.open(fp32, device="cpu", optimised=False)),
        Stage("graph", executor(graph, model, as_written=True), limits),
        Stage("engine", engine, limits, reason),
    ]


def search_for(recipe: Recipe, judge: Judge, rank: Sequence[Picture], budget: Budget) -> Search:
    """The search for the layers that stay in float32; its record lies beside the graph, and an earlier one is used."""

    def measure(in_float: frozenset[str]) -> Quality:
        graph = recipe.described(in_float, budget)
        with executor(graph, recipe.build(in_float)) as engine:
            found = judge.measure(engine)
        return Quality(found.agreement, found.miou_drop, found.ms if recipe.form == NATIVE_FORM else None)

    path = recipe.path.with_suffix(".pareto.json")
    record = Record(path, _key(recipe, rank), recipe.narrow_share)
    return Search(measure, recipe.work, budget, record=record, always=recipe.always)


def _key(recipe: Recipe, rank: Sequence[Picture]) -> str:
    """A name for all that the measurements of a search depend on."""
    hashes = [artifact.sha256(file) for picture in rank for file in (picture.image, picture.mask) if file is not None]
    facts = [__version__, recipe.fp32.sha256, recipe.path.name, recipe.made_by, sorted(recipe.always), hashes]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class Narrowing:
    """Everything the graphs of one export share: who decides, who proves, what may be lost."""

    def __init__(
        self, parts: Parts, budget: Budget, reference: Reference, report: Report, *, progress: Progress
    ) -> None:
        self.parts = parts
        self.budget = budget
        self._reference = reference
        self._report = report
        self.show_progress = progress

    @functools.cached_property
    def judge(self) -> Judge:
        """PyTorch's masks of the images that decide: seen once, for every form."""
        with self.show_progress(f"Reading {self._reference.spec.model}'s masks", len(self.parts.rank)) as done:
            return Judge(self._reference, self.parts.rank, done=done)

    def search(self, recipe: Recipe) -> Search:
        return search_for(recipe, self.judge, self.parts.rank, self.budget)

    def ranking(self, recipe: Recipe, search: Search) -> list[Sensitivity]:
        with self.show_progress(f"Ranking {recipe.path.stem}", len(recipe.work)) as done:
            return search.ranking(done=done)

    def measured(self, recipe: Recipe) -> Artifact:
        """The graph as narrow as can be, with a proof that gates nothing: untrained weights have nothing to lose."""
        graph, model = recipe.described(recipe.always, self.budget), recipe.build(recipe.always)
        return write(graph, model, self._prove(graph, model, recipe.fp32))

    def within_budget(self, recipe: Recipe) -> Artifact:
        """The first graph whose proof holds. Raise GateFailedError, and leave what was there, where none does."""
        search = self.search(recipe)
        reason = "no choice of float32 layers keeps to it on the images that decide"
        for in_float in search.steps(lambda: self.ranking(recipe, search)):
            graph, model = recipe.described(in_float, self.budget), recipe.build(in_float)
            report = self._prove(graph, model, recipe.fp32)
            if report["passed"]:
                search.record.accept(in_float)
                return write(graph, model, report)
            failed = next(stage for stage in report["stages"] if stage["name"] == report["first_failing_stage"])
            reason = f"stage {failed['name']!r}: {failed['reason']}"
            if failed["name"] == FP32_STAGE:
                break
        raise GateFailedError(
            f"{recipe.path} cannot be made inside the budget: {reason}.",
            "Spare more (--max-drop, --min-agreement), or calibrate on images like its own (--calibrate DIR).",
        )

    def _prove(self, graph: Artifact, model: onnx.ModelProto, fp32: Artifact) -> Mapping[str, Any]:
        runs_here = graph.form in {None, NATIVE_FORM}
        engine = ort.open(graph, device="cpu", graph=model.SerializeToString()) if runs_here else None
        return self._report(graph, stages(graph, fp32, engine, model), self.parts.prove)


def write(graph: Artifact, model: onnx.ModelProto, report: Mapping[str, Any] | None) -> Artifact:
    """The file and its manifest; between the two, the file has none and counts as unfinished."""
    with artifact.replacing(graph.path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        artifact.manifest_path(graph.path).unlink(missing_ok=True)
    written = dataclasses.replace(graph, sha256=artifact.sha256(graph.path), parity=report)
    artifact.write_manifest(written)
    return written
