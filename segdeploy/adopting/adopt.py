"""A network of somebody else becomes a graph in `export/`: seen, written, held against the original, proven."""

import dataclasses
import functools
import importlib.metadata
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from segdeploy import artifact, engines, extras, fitting, images, palettes, proving, with_torch, workspace
from segdeploy._version import __version__
from segdeploy.adopting import originals, pictures, preprocessing
from segdeploy.adopting.options import ADOPT, Adopted, AdoptOptions
from segdeploy.adopting.originals import Original, Source
from segdeploy.artifact import Artifact
from segdeploy.data import check, class_table, dataset, layouts
from segdeploy.data.dataset import DataFolder, Dataset, Picture
from segdeploy.engines import EngineFile
from segdeploy.errors import GateFailedError, InvalidFileError, InvalidRequestError, SegdeployError
from segdeploy.names import below, require_new_name
from segdeploy.origin import ForeignOrigin, Origin
from segdeploy.paths import shown
from segdeploy.progress import Progress, silent
from segdeploy.proof import kit
from segdeploy.proof.reference import Reference
from segdeploy.proof.samples import FileSamples
from segdeploy.proving import ProofOptions
from segdeploy.spec import Precision, Spec

if TYPE_CHECKING:
    import onnx

    from segdeploy.graphs.original import Original as Network
    from segdeploy.graphs.probing import Sight
    from segdeploy.graphs.said import Said

MODEL = "onnx"  # the `model` of a Spec whose network is none of ours
PROBES = 3  # images it is run on to see what it is, and in one batch
BINARY = ("background", "foreground")
ALONE = "its batch cannot be freed exactly: it takes one image at a time, and engines run a batch image by image"
IGNORED = 255  # in the masks of a labelled folder


@extras.named_where_missing()
def adopt(source: Source, name: str, options: AdoptOptions = ADOPT, *, progress: Progress = silent) -> Adopted:
    """Write `export/NAME.fp32.onnx`, proven against the original where there are images; else unproven.

    Raise InvalidFileError where the file is no segmentation network that can be deployed, InvalidRequestError where it
    does not say what has to be said, UndecidedError where labelled images cannot say it either, GateFailedError where
    the graph draws other masks than the original.
    """
    _require_free(name, overwrite=options.overwrite)
    engines.modules()[engines.REFERENCE].import_runtime()
    with originals.opened(source, options) as original:
        return _adopted(original, name, options, progress)


def _adopted(original: Original, name: str, options: AdoptOptions, progress: Progress) -> Adopted:
    labels = _labels(options)
    sight = _seen(original, options, labels)
    spec = _spec(name, sight, original.about, options, labels)
    proving_on, deciding_on = pictures.pictures(options, None if labels is None else labels.data)
    if labels is not None:
        check.require(
            labels.folder, ignore_index=spec.ignore_index, network=spec.classes, force=options.force, progress=progress
        )
    search = preprocessing.Search(original.path, original.model, sight.reading, spec, tuple(deciding_on))
    prepared = preprocessing.prepared(search, original.about, options, progress=progress)
    sight = dataclasses.replace(
        sight,
        reading=dataclasses.replace(sight.reading, preprocessing=prepared.how),
        notes=(*original.notes, *sight.notes, *prepared.notes),
    )
    spec = preprocessing.with_normalisation(spec, prepared.how)
    if options.fit is None:
        spec = fitting.with_fit(spec, prepared.fit)
    with progress(f"Adopting {name}", 1) as done:
        graph = _written(original, sight, spec, proving_on, labels=labels)
        done()
    _require_kept(original, graph, proving_on)
    proven = _proven(graph, proving_on, options, progress)
    notes = () if proven.origin.foreign is None else proven.origin.foreign.notes
    return Adopted(graph=proven, source=prepared.source, notes=notes, table=prepared.table)


def _require_free(name: str, *, overwrite: bool) -> None:
    """A new name, or one that an adopted graph has, to be replaced."""
    require_new_name(name, "an adopted network")
    if name not in workspace.names() or (overwrite and workspace.is_adopted(name)):
        return
    remedy = "Give another --name" + (", or --overwrite." if workspace.is_adopted(name) else ".")
    raise InvalidRequestError(f"there is a network named {name} already.", remedy)


@dataclasses.dataclass(frozen=True)
class _Labels:
    """The labelled folder that was given, opened once; `classes` are looked up where nobody else names them."""

    folder: DataFolder | Path
    data: Dataset

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        return layouts.classes_of(self.data, ignore_index=IGNORED).names


def _labels(options: AdoptOptions) -> _Labels | None:
    if options.data is None or not layouts.is_labelled(options.data):
        return None
    return _Labels(options.data, layouts.open_folder(options.data))


def _seen(original: Original, options: AdoptOptions, labels: _Labels | None) -> "Sight":
    from segdeploy.graphs import foreign, probing
    from segdeploy.graphs.outputs import Wish

    path, model, about = original.path, original.model, original.about
    declared = foreign.sides_of(foreign.image_input(path, model))
    wish = Wish(
        size=options.size or (about.size if about is not None and None in declared else None),
        output=options.output_name,
        threshold=options.threshold,
        classes=_count(options.classes) or (None if labels is None else len(labels.classes)),
        values=tuple(options.class_values),
    )
    return probing.look(path, model, wish, _probes())


def _probes() -> list[NDArray[np.uint8]]:
    """Photographs that look different, to run a network on before its own images are known."""
    found = workspace.packaged_images()
    return [images.read(found[index * (len(found) - 1) // (PROBES - 1)]) for index in range(PROBES)]


# Classes


def _count(classes: Sequence[str] | str | int | None) -> int | None:
    if classes is None or isinstance(classes, int):
        return classes
    return int(classes) if isinstance(classes, str) and classes.isdigit() else len(_named(classes))


def _named(classes: Sequence[str] | str) -> tuple[str, ...]:
    """Names: given one by one, as text with commas, or in a file."""
    if not isinstance(classes, str):
        return tuple(classes)
    path = Path(classes)
    if not path.is_file():
        return tuple(name.strip() for name in classes.split(",") if name.strip())
    if path.suffix == ".csv":
        return class_table.read(path).names
    text = artifact.bounded(path, artifact.MANIFEST_BYTES).decode(errors="replace")
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _spec(name: str, sight: "Sight", about: "Said | None", options: AdoptOptions, labels: _Labels | None) -> Spec:
    names = _class_names(sight.classes, about, options, labels)
    spec = Spec(MODEL, {}, names, palettes.default_colours(len(names)), *sight.size, name=name)
    return fitting.with_fit(spec, options.fit, options.overlap)


def _class_names(count: int, about: "Said | None", options: AdoptOptions, labels: _Labels | None) -> tuple[str, ...]:
    """As given, as the file says, as the labelled folder says; else numbers."""
    if options.classes is not None and not str(options.classes).isdigit() and not isinstance(options.classes, int):
        return _named(options.classes)
    if about is not None and len(about.classes) == count:
        return about.classes
    if labels is not None and len(labels.classes) == count:
        return labels.classes
    return BINARY if count == len(BINARY) else tuple(f"class {index}" for index in range(count))


# The graph


def _written(
    original: Original,
    sight: "Sight",
    spec: Spec,
    proving_on: Sequence[Picture],
    *,
    labels: _Labels | None,
) -> Artifact:
    """The deployed graph and its manifest, unproven."""
    from segdeploy.graphs import adopted, foreign

    target = below(workspace.EXPORTS, f"{spec.name}.{Precision.FP32}.onnx")
    found = _origin_of(original, sight, target.parent)
    graph = _equal(original, found, sight, spec)
    kept = _kept(original, spec.name)
    with artifact.replacing(target) as temporary:
        temporary.write_bytes(graph.SerializeToString(deterministic=True))
        artifact.manifest_path(target).unlink(missing_ok=True)
    kit.path_of(target).unlink(missing_ok=True)  # of an earlier graph
    origin = dataclasses.replace(
        found,
        path=os.path.relpath(kept, target.parent),
        notes=(*found.notes, *([ALONE] if adopted.takes_one_image(graph) else [])),
        pictures=tuple(pictures.remembered(proving_on, target.parent)),
        folder=None if labels is None else dataset.remembered_folder(labels.data, target.parent),
    )
    made = Artifact(
        path=target,
        kind="graph",
        precision=Precision.FP32,
        spec=spec,
        sha256=artifact.sha256(target),
        made_at=artifact.now(),
        origin=Origin(
            command="adopt",
            version=__version__,
            opset=foreign.opset_of(graph),
            torch=None if original.kind == "ONNX" else importlib.metadata.version("torch"),
            foreign=origin,
        ),
    )
    artifact.write_manifest(made)
    return made


def _origin_of(original: Original, sight: "Sight", folder: Path) -> ForeignOrigin:
    source = original.built_from
    if source is not None and source.path is not None:
        source = dataclasses.replace(source, path=os.path.relpath(source.path, folder))
    return ForeignOrigin(
        kind=original.kind,
        path=None,
        sha256=original.sha256,
        reading=sight.reading,
        notes=sight.notes,
        built_from=source,
    )


def _kept(original: Original, name: str) -> Path:
    """Where the original lies from now on: where it lay, or, of a module that is no file, beside the graph."""
    target = below(workspace.EXPORTS, f"{name}.original.pt2")
    if original.module is None:
        target.unlink(missing_ok=True)  # of an earlier graph
        return original.file
    with artifact.replacing(target) as temporary:
        shutil.copyfile(original.file, temporary)
    return target


def _reference(original: Original, found: ForeignOrigin, spec: Spec) -> Reference:
    """The module itself, where it was given; else the file."""
    if original.module is None:
        return proving.original_reference(original.file, found, spec)
    room = with_torch.module_reference()
    live: Reference = room.ModuleReference(original.module, spec, found.reading, named=str(original.path))
    return live


def _require_kept(original: Original, graph: Artifact, proving_on: Sequence[Picture]) -> None:
    """What later proofs run draws what the module itself draws, on every image; else nothing is left behind."""
    found = graph.origin.foreign
    if original.module is None or found is None:
        return
    live, kept = _reference(original, found, graph.spec), proving.reference_of(graph)
    for sample in FileSamples(proving_on, graph.spec):
        (expected, tied), (drawn, also_tied) = live.class_map(sample.image), kept.class_map(sample.image)
        if ((drawn != expected) & ~tied & ~also_tied).any():
            for path in (graph.path, artifact.manifest_path(graph.path), workspace.original_of(graph)):
                path.unlink()
            raise GateFailedError(
                f"the program that torch.export made of {shown(original.path)} draws other masks than the module "
                f"({shown(sample.name)}).",
                "Its path must not depend on what the image shows: write it in tensor operators (torch.where).",
            )


def _equal(original: Original, found: ForeignOrigin, sight: "Sight", spec: Spec) -> "onnx.ModelProto":
    """The first spelling that draws the original's masks, of images together; else of each alone."""
    from segdeploy.graphs import adopted, foreign, probing
    from segdeploy.graphs.original import Original as Network

    model = original.model
    reference = _reference(original, found, spec)
    shown_images = np.stack([probing.fitted(probe, sight.size) for probe in _probes()])
    reason = f"is written in opset {foreign.opset_of(model)}, and cannot be converted to one that is deployed"
    of_one = None
    for graph in adopted.candidates(model, sight, spec, sha256=found.sha256):
        network = Network(graph)
        difference = _difference(network, reference, shown_images)
        if difference is not None:
            reason = difference
        elif _takes_a_batch(network, reference, shown_images):
            return graph
        elif of_one is None:
            single = adopted.of_one_image(graph)
            of_one = single if _difference(Network(single), reference, shown_images) is None else None
    if of_one is None:
        raise foreign.refused(original.path, reason, "Export it again, with a dynamic batch and a newer opset.")
    return of_one


def _difference(network: "Network", reference: Reference, batch: NDArray[np.uint8]) -> str | None:
    """Why a graph is not the original, of each image alone; None where it is."""
    for image in batch:
        try:
            drawn = _drawn(network, image[None])
        except SegdeployError as error:
            return f"cannot be deployed: {error.what}"
        if not _are_the_originals(drawn, reference, image[None]):
            return "cannot be deployed: in the deployed form it draws other masks"
    return None


def _takes_a_batch(network: "Network", reference: Reference, batch: NDArray[np.uint8]) -> bool:
    try:
        drawn = _drawn(network, batch)
    except InvalidFileError:
        return False
    return _are_the_originals(drawn, reference, batch)


def _drawn(network: "Network", batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from segdeploy.graphs import adopted

    return np.asarray(network.run(adopted.IMAGES, batch)[network.outputs[0]], np.uint8)


def _are_the_originals(drawn: NDArray[np.uint8], reference: Reference, batch: NDArray[np.uint8]) -> bool:
    """Whether the class maps of images are those that the original draws of each alone, but for near-ties."""
    expected, tied = map(np.stack, zip(*map(reference.class_map, batch), strict=True))
    return drawn.shape == expected.shape and not (drawn != expected)[~tied].any()


def _proven(graph: Artifact, proving_on: Sequence[Picture], options: AdoptOptions, progress: Progress) -> Artifact:
    """The graph with its proof, and its proof kit; as it is where there are no images."""
    if not proving_on:
        return graph
    opened = EngineFile(graph, engines.REFERENCE, Precision.FP32, "cpu")
    asked = ProofOptions(allow_inconclusive=options.allow_inconclusive)
    found = proving.judge(graph, opened, proving_on, options=asked, progress=progress)
    proven = proving.keep(graph, found)
    proving.require_passed(found, proven)
    if options.proof_kit:
        proving.write_kit(proven, proving_on)
    return proven
