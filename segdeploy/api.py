"""The verbs of segdeploy: what each command means, as a function. A file may be given as a path or as text."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy import admission, engines, extras, fitting, making, models, proving, workspace
from segdeploy.artifact import Artifact
from segdeploy.certificate import Certificate
from segdeploy.data import check, layouts
from segdeploy.data.dataset import DataFolder
from segdeploy.engines import BuildOptions, Engine, EngineFile, RunOptions, pytorch
from segdeploy.errors import InvalidRequestError, MissingRuntimeError
from segdeploy.making import ExportOptions
from segdeploy.progress import Progress, silent
from segdeploy.proving import ProofOptions
from segdeploy.spec import Fit, Precision, Spec

if TYPE_CHECKING:
    from torch import nn

    from segdeploy.adopting.options import Adopted, AdoptOptions
    from segdeploy.benchmarking import BenchOptions
    from segdeploy.blocks import Network
    from segdeploy.checkpoints.foreign import ImportOptions
    from segdeploy.data.convert import ConvertOptions, ConvertReport
    from segdeploy.diagnosis import Diagnosis
    from segdeploy.importing import ImportReport
    from segdeploy.inference.options import FolderOptions
    from segdeploy.inference.report import Report
    from segdeploy.inspection import Inspection, ModelDescription
    from segdeploy.proof.accuracy import Evaluation
    from segdeploy.quantization.sensitivity import SensitivityReport
    from segdeploy.reporting.page import WrittenPage
    from segdeploy.timing.result_types import Result
    from segdeploy.training.loop import TrainingProgress
    from segdeploy.training.options import TrainOptions

File = str | os.PathLike[str]
Folder = File | DataFolder  # of data: with its layout, where that is named
TRAINING_SIZE = (256, 256)


@extras.named_where_missing()
def open(  # noqa: A001 - `segdeploy.open("unet").segment(photo)`
    model: File | None = None,
    *,
    engine: str = "fp32",
    device: str = "auto",
    options: RunOptions = engines.RUN,
    progress: Progress = silent,
) -> Engine:
    """An engine, ready: `segdeploy.open("unet", engine="fp32").segment(photo)`.

    `model` is a name, the path of a graph or of a plan, or None for the newest export; what is missing is made and
    proven. `engine` without a runtime is the best usable one on this machine. An engine that nobody has proven in this
    arithmetic is proven first, by its proof kit or with PyTorch. Raise GateFailedError where it draws other masks than
    PyTorch, InvalidFileError where nothing here can prove it or its weights are random.
    """
    return admission.opened(making.find(_text(model), engine, device, progress), options, progress)


def _text(model: File | None) -> str | None:
    return None if model is None else os.fspath(model)


def _folder(named: Folder | None) -> DataFolder | None:
    return None if named is None else DataFolder.of(named)


@extras.named_where_missing()
def train(
    model: str,
    *,
    data: Folder,
    options: "TrainOptions | None" = None,
    size: tuple[int, int] = TRAINING_SIZE,
    variant: Mapping[str, Any] | None = None,
    out: File = workspace.CHECKPOINTS,
    ignore_index: int = 255,
    name: str | None = None,
    resume: bool = False,
    force: bool = False,
    progress: "TrainingProgress | None" = None,
    checking: Progress = silent,
) -> Path:
    """Train a network on a labelled folder, once it was checked; give the path of the best checkpoint.

    `size` is (height, width) of the network's input, `variant` the options that the network is built with. `name` is
    what the network is called from then on, and begins the names of the run's files in `out`; None is the model's.
    `force` lets warnings of the check pass; `checking` is its progress, `progress` that of the training. Raise
    InvalidRequestError where another process trains under that name in `out`.
    """
    from segdeploy.checkpoints import foreign
    from segdeploy.training import loop
    from segdeploy.training.options import Augmentation, SilentTraining, TrainOptions

    models.require(model)
    name = loop.require_run_name(name or model, model)
    folder = DataFolder.of(data)
    labelled, variant = layouts.open_folder(folder), dict(variant or {})
    options = options or TrainOptions(Augmentation(crop=size))
    encoder = None if options.weights is None else foreign.read_encoder(Path(options.weights), model, variant)
    variant = variant if encoder is None else dict(encoder.variant)
    check.require(folder, ignore_index=ignore_index, force=force, progress=checking)
    classes = layouts.classes_of(labelled, ignore_index=ignore_index)
    margin = models.build(model, len(classes.names), **variant).margin
    about = Spec(model, variant, classes.names, classes.colours, *size, ignore_index=ignore_index, margin=margin)
    spec = fitting.with_fit(dataclasses.replace(about, name=name), options.fit)
    shown = progress or SilentTraining()
    return loop.train(labelled, spec, options, Path(out), resume=resume, progress=shown, encoder=encoder)


@extras.named_where_missing()
def import_checkpoint(
    file: File, *, name: str, options: "ImportOptions | None" = None, overwrite: bool = False
) -> "ImportReport":
    """Write a foreign checkpoint of one of the four networks as `checkpoints/NAME.safetensors`.

    `model=name` takes it from then on. Taken are torchvision's DeepLabv3, semseg's PSPNet, mmsegmentation's PSPNet and
    DeepLabV3, milesial's U-Net and Caffe's SegNet (docs/own-network.md). Nothing of the file is run. The report says
    what became of every tensor, and which conventions the file does not tell. Raise InvalidFileError for what is none
    of them, InvalidRequestError where the name is a network's or is taken.
    """
    from segdeploy import importing
    from segdeploy.checkpoints.foreign import ImportOptions

    return importing.import_checkpoint(Path(file), name, options or ImportOptions(), overwrite=overwrite)


@extras.named_where_missing()
def network(path: File) -> "Network":
    """The torch module of a checkpoint, ours or a foreign one.

    It takes normalised float (N, 3, H, W) and gives logits (N, K, H, W), in evaluation mode, on the CPU, in float32.
    Raise InvalidFileError for what is no checkpoint of the four networks.
    """
    from segdeploy.checkpoints import opening

    return opening.load(Path(path), opening.read(Path(path)).spec)


@extras.named_where_missing()
def export(
    model: str | None = None,
    *,
    precision: Precision | str = Precision.FP32,
    options: ExportOptions = making.EXPORT,
    progress: Progress = silent,
) -> list[Artifact]:
    """Write the graphs of a model into `export/`, each proven: one, or one for each form of int8.

    Without `model`, that of the checkpoint which the options name; it may be a foreign one (`import_checkpoint`).

    Raise GateFailedError where a graph is not the same network, or not inside the budget. A failed float32 graph stays
    in place with its certificate; of low precision, an earlier graph stays in place.
    """
    return making.export(model, precision=_precision(precision), options=options, progress=progress)


@extras.named_where_missing()
def adopt(
    source: "File | nn.Module", *, name: str, options: "AdoptOptions | None" = None, progress: Progress = silent
) -> "Adopted":
    """Make a deployed graph, `export/NAME.fp32.onnx`, of a network that somebody else trained.

    `source`: an ONNX file, a torch module, a program of torch.export (`.pt2`), a TorchScript archive, a folder that
    transformers or segmentation_models.pytorch saved, or `package.module:build`, whose code is run. A module takes
    float32 (N, 3, H, W) and gives a tensor, several, a dictionary with `out`, or an object with `logits`; what is no
    file is kept as `export/NAME.original.pt2`, so that it can be compared with again.

    The original, in ONNX Runtime or in PyTorch, is what its masks are compared with. Without images in the options the
    graph is unproven. Raise InvalidFileError where it is no segmentation network that can be deployed,
    InvalidRequestError where it does not say what has to be said (`UndecidedError` where labelled images cannot say it
    either), GateFailedError where the graph draws other masks than the original.
    """
    from segdeploy.adopting import adopt as adopting
    from segdeploy.adopting.options import ADOPT

    return adopting.adopt(source, name, options or ADOPT, progress=progress)


def _precision(name: Precision | str) -> Precision:
    parsed = engines.parse(name)
    if parsed.runtime is not None:
        raise InvalidRequestError(
            f"{name!r} is an engine; a precision was asked for.", f"Give it alone: {parsed.precision}."
        )
    return parsed.precision


@extras.named_where_missing()
def build(
    model: File | None = None,
    *,
    engine: str,
    options: BuildOptions = engines.BUILD,
    progress: Progress = silent,
) -> Artifact:
    """Compile a plan into `engines/`, signed, and prove it where this machine has the GPU for it.

    A runtime that compiles nothing gives the graph or the checkpoint that it opens.
    """
    return making.build(_text(model), engine=engine, options=options, progress=progress)


@extras.named_where_missing()
def parity(
    model: File | None = None,
    *,
    engine: str = "fp32",
    data: Folder | None = None,
    device: str = "auto",
    options: ProofOptions = proving.DEFAULT,
    force: bool = False,
    progress: Progress = silent,
) -> Certificate:
    """Compare PyTorch, the graph and an engine pixel by pixel; the certificate goes into the manifest.

    Its `proves` says whether the masks are proven the same; nothing is raised where they are not. Where PyTorch or the
    checkpoint is not here, the proof kit beside the file takes their place. Without `data`, packaged weights are proven
    on packaged images, own weights on those that training validated on; `force` lets warnings about labels pass. Under
    limits of the options, the verdict by the file's own limits is kept as well, and the one that opens doors. Raise
    MissingRuntimeError where the engine cannot run on this machine and the options require it.
    """
    given = _folder(data)
    if given is not None or options.bisect:
        pytorch.import_runtime()  # no kit takes its place there: say so before the work
    pictures = [] if given is None else workspace.pictures_of(given)
    found = making.find(_text(model), engine, device, progress, options=ExportOptions(data=given, force=force))
    if options.require_engine:
        _require_engine(found)
    if options.bisect and found.file.kind == "checkpoint":
        raise InvalidRequestError("--bisect looks into graphs; torch runs a checkpoint.", "Give --engine ort:fp32.")
    proof = None
    if given is None and not options.bisect and found.file.kind != "checkpoint":
        proof = admission.without_pytorch(found, options=options, progress=progress)
    if proof is None:
        graph = making.graph_behind(found, _text(model), progress)
        check.require_for(graph, given, force=force, progress=progress)
        shown = workspace.proof_images_of(graph) if given is None else pictures
        proof = proving.judge(graph, found, shown, options=options, progress=progress)
    asked = proving.as_asked(proof, options)
    if found.file.kind != "checkpoint":
        proving.keep(found.file, proof, asked=None if asked is proof else asked)
    return asked


def _require_engine(found: EngineFile) -> None:
    form, runs = found.file.form, engines.modules()[found.runtime].FORM
    if form not in {None, runs}:
        raise MissingRuntimeError(
            f"{found.file.path}: no runtime on this machine computes the {form} form.",
            "Leave out --require-engine to prove the graph alone, or prove it on a machine with the GPU it is for.",
        )


@extras.named_where_missing()
def bench(model: File | None = None, *, options: "BenchOptions | None" = None, progress: Progress = silent) -> "Result":
    """Time engines against each other in one interleaved run, each with the accuracy of the very file that is timed."""
    from segdeploy import benchmarking

    return benchmarking.run(_text(model), options or benchmarking.DEFAULT, progress=progress)


@extras.named_where_missing()
def evaluate(
    model: File | None = None,
    *,
    data: Folder,
    engine: str = "fp32",
    device: str = "auto",
    options: RunOptions = engines.RUN,
    fit: Fit | None = None,
    overlap: int | None = None,
    decode: fitting.Decode = "exact",
    force: bool = False,
    progress: Progress = silent,
) -> "Evaluation":
    """mIoU, pixel accuracy and IoU by class of an engine over a labelled folder's validation images.

    `fit` and `overlap`: how images meet the network, as in `Spec`; None follows the network's own. `decode`: `scaled`
    decodes large JPEGs as `infer` does. The folder is checked before; `force` lets warnings pass.
    """
    from segdeploy.proof import accuracy

    folder = DataFolder.of(data)
    pictures = layouts.open_folder(folder).val
    making_options = ExportOptions(data=folder, force=force)
    found = making.find(_text(model), engine, device, progress, options=making_options)
    check.require_for(found.file, folder, force=force, progress=progress)
    spec = fitting.with_fit(found.file.spec, fit, overlap)
    with (
        admission.opened(found, options, progress) as opened,
        progress(f"Evaluating {found.file.spec.name}", len(pictures)) as done,
    ):
        opened.spec = spec
        scores = accuracy.scores(accuracy.confusion(opened, pictures, decode=decode, done=done), spec)
    return accuracy.Evaluation(
        model=found.file.spec.name,
        runtime=found.runtime,
        device=opened.device,
        precision=found.precision,
        delivered=opened.delivered,
        fit=spec.fit,
        own_fit=found.file.spec.fit,
        decode=decode,
        random_weights=found.file.has_random_weights,
        sha256=found.file.sha256,
        data=os.fspath(folder.path),
        images=len(pictures),
        miou=scores.miou,
        pixel_accuracy=scores.pixel_accuracy,
        classes=scores.classes,
    )


@extras.named_where_missing()
def infer(
    inputs: File | Sequence[File],
    *,
    out: File = "masks",
    model: File | None = None,
    engine: str = "fp32",
    device: str = "auto",
    options: RunOptions = engines.RUN,
    write: Sequence[str] = ("mask",),
    names: str = "stem",
    folder: "FolderOptions | None" = None,
    progress: Progress = silent,
) -> "Report":
    """Masks for every image below the inputs; the report says what was done, skipped and failed, and why.

    What an earlier run made of the same files with the same engine is not made again: see `folder`. Inputs and `out`
    may be URLs of object stores, such as `s3://bucket/photos`.

    `write`: the kinds of output, `mask`, `overlay`, `side`, `npy`, `rle`, `geojson`, `svg`, `tiff`; masks go to
    `out`, overlays to `out`-overlays, every other kind to `out`-KIND. `names`: `stem` calls the mask of `a/x.jpg`
    `a/x.png`, `full` `a/x.jpg.png`; of two images that would share a name the first is done, each other fails.
    """
    from segdeploy import segmenting
    from segdeploy.inference.options import FOLDER

    asked = segmenting.Asked(
        inputs=[os.fspath(each) for each in ([inputs] if isinstance(inputs, str | os.PathLike) else inputs)],
        out=os.fspath(out),
        model=_text(model),
        engine=engine,
        device=device,
        write=write,
        names=names,
    )
    return segmenting.segment(asked, options, folder or FOLDER, progress)


def check_data(data: Folder, *, ignore_index: int = 255, progress: Progress = silent) -> check.DataReport:
    """What a labelled folder holds and what is wrong with it; nothing is raised for a fault that the report can hold.

    `train`, `evaluate`, `export`, `parity`, `bench` and `sensitivity` check the folder they are given in the same way.
    """
    return check.check(DataFolder.of(data), ignore_index=ignore_index, progress=progress)


def convert_masks(
    source: Folder, *, out: File, options: "ConvertOptions | None" = None, progress: Progress = silent
) -> "ConvertReport":
    """A labelled folder of any layout, as one of ours in `out`: images/, masks/, classes.csv, train.txt and val.txt.

    For a folder of masks in colours, which no layout recognises: index masks in `out`, by the colours of `classes.csv`.
    """
    from segdeploy.data import convert

    return convert.convert(DataFolder.of(source), Path(out), options=options or convert.CONVERT, progress=progress)


@extras.named_where_missing()
def report(results: File | Sequence[File], *, out: File = "report.html", title: str | None = None) -> "WrittenPage":
    """Write one HTML page from the results of `bench`: the verdict, charts, masks to compare, the proof."""
    from segdeploy.reporting import page

    named = [results] if isinstance(results, str | os.PathLike) else results
    return page.write([Path(each) for each in named], Path(out), title=title)


@extras.named_where_missing()
def inspect(path: File) -> "Inspection":
    """What a checkpoint, a graph or a plan promises, where it came from and what was proven of it."""
    from segdeploy import inspection

    return inspection.inspect(Path(path))


@extras.named_where_missing()
def list_models() -> "list[ModelDescription]":
    """The networks, how each can be built, and which weights are at hand."""
    from segdeploy import inspection

    return inspection.list_models()


@extras.named_where_missing()
def doctor() -> "Diagnosis":
    """What is installed and usable, what clashes, what would be chosen, and what to do."""
    from segdeploy import diagnosis

    return diagnosis.diagnose()


@extras.named_where_missing()
def sensitivity(
    model: File | None = None,
    *,
    precision: Precision | str = Precision.INT8,
    options: ExportOptions = making.EXPORT,
    progress: Progress = silent,
) -> "SensitivityReport":
    """Rank the layers: what each gives back when it alone stays in float32, and what that costs."""
    return making.sensitivity(_text(model), precision=_precision(precision), options=options, progress=progress)
