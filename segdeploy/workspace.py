"""Which file is meant, where it lies, whether it is current, and which images come with it."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from segdeploy import artifact, engines, external_data, models, signature
from segdeploy.artifact import Artifact
from segdeploy.certificate import WeightsKind
from segdeploy.checkpoints import checkpoint, opening
from segdeploy.checkpoints.foreign import DEFAULT, ImportOptions
from segdeploy.data import dataset, layouts
from segdeploy.data.dataset import DataFolder, Picture
from segdeploy.errors import InvalidFileError, InvalidRequestError, SegdeployError
from segdeploy.names import below, shown
from segdeploy.origin import (
    ForeignKind,
    ForeignOrigin,
    ProofPicture,
    ValidationFolder,
    ValidationPicture,
    WeightsOrigin,
)
from segdeploy.spec import Precision

EXPORTS = Path("export")
ENGINES = Path("engines")
CHECKPOINTS = Path("checkpoints")
PACKAGED = Path(__file__).parent / "weights"
DEFAULT_MODEL = "unet"
PROOF_IMAGES = 8  # packaged ones, on every export; `parity` takes all of a folder
RANDOM_PROOF_IMAGES = 1  # random weights are measured and not judged


@dataclasses.dataclass(frozen=True, slots=True)
class Weights:
    """A checkpoint and where it came from."""

    kind: WeightsKind
    checkpoint: Artifact

    def origin_in(self, folder: Path) -> WeightsOrigin:
        """What a manifest in `folder` says of them; the path is relative, so that the project can move."""
        path = self.checkpoint.path
        named = path.name if self.kind == "packaged" else os.path.relpath(path, folder)
        return WeightsOrigin(kind=self.kind, sha256=self.checkpoint.sha256, path=named)


def names() -> list[str]:
    """What can be named here: the networks, and what files in `checkpoints/`, `export/` and `engines/` are called."""
    files = (*named_checkpoints(), *EXPORTS.glob("*.onnx"), *ENGINES.glob("*.plan"))
    return sorted({*models.names(), *(path.name.partition(".")[0] for path in files)} - {""})


def named_checkpoints() -> list[Path]:
    """What training and import left here; what a run is resumed from (`unet.last.safetensors`) is left out."""
    return sorted(path for path in CHECKPOINTS.glob("*.safetensors") if "." not in path.stem)


def require_name(name: str) -> None:
    """Raise InvalidRequestError where nothing here has that name."""
    if name not in (known := names()):
        raise InvalidRequestError(f"there is no model named {shown(name)}.", f"Choose one of {', '.join(known)}.")


def checkpoint_path(name: str) -> Path:
    """Where training and import leave the network of that name."""
    return below(CHECKPOINTS, f"{name}.safetensors")


def weights_for(name: str, given: Path | None = None, how: ImportOptions = DEFAULT) -> Weights:
    """The checkpoint that was given, else what training or import left here, else what comes with the package.

    `how` a foreign checkpoint is taken that was given.
    """
    require_name(name)
    trained, packaged = checkpoint_path(name), PACKAGED / f"{name}.safetensors"
    own = given if given is not None else trained if trained.is_file() else None
    if own is not None:
        found = _of_name(opening.read(own, how), name) if own is given else _of_network(checkpoint.read(own), name)
        is_packaged = packaged.is_file() and artifact.sha256(packaged) == found.sha256
        return Weights("packaged", checkpoint.read(packaged)) if is_packaged else Weights("file", found)
    if packaged.is_file():
        return Weights("packaged", checkpoint.read(packaged))
    train = f"Train some: segdeploy train --model {name} --data DIR"
    remedy = train if name in models.names() else "Bring its checkpoint."
    raise InvalidRequestError(f"there are no weights for {name}.", remedy)


def _of_network(found: Artifact, name: str) -> Artifact:
    """A checkpoint, once it may be called `name`: the name of a network is kept for that network."""
    if name in models.names() and found.spec.model != name:
        raise _is_another(found, found.spec.model, name)
    return dataclasses.replace(found, spec=dataclasses.replace(found.spec, name=name))


def _of_name(found: Artifact, name: str) -> Artifact:
    """A file, once it is of the network that is meant by `name`: one of the networks, or what files are called."""
    if name in models.names():
        return _of_network(found, name)
    if found.spec.name != name:
        raise _is_another(found, found.spec.name, name)
    return found


def _is_another(found: Artifact, held: str, name: str) -> InvalidFileError:
    return InvalidFileError(f"{found.path} holds a {held}, not a {name}.", f"Give --model {held}.")


# Graphs


def current_graph(model: str | None, precision: Precision, form: str | None) -> Artifact | None:
    """The graph of a model (a name, the path of a graph, or None for the newest), once it is of what is here now."""
    if model is None:
        newest = newest_export()
        return None if newest is None else current_graph(newest, precision, form)
    if model.endswith(".onnx"):
        return _of_precision(artifact.read(Path(model)), precision)
    if model.endswith(".safetensors") or os.sep in model:
        raise InvalidRequestError(
            f"{model} is no graph: --model takes a name or a .onnx file.",
            f"Export it first: segdeploy export --model NAME --weights {model}",
        )
    require_name(model)
    path = artifact.graph_path(EXPORTS, model, precision, form)
    if not path.is_file() or not artifact.manifest_path(path).is_file():
        return None
    graph = artifact.read(path)
    return None if is_stale(graph) else graph


def is_stale(graph: Artifact) -> bool:
    """Whether a graph was made from another file than the one that is here now; what is not here cannot tell."""
    if graph.precision is not Precision.FP32:
        fp32 = current_graph(graph.spec.name, Precision.FP32, None)
        return fp32 is None or graph.origin.graph is None or graph.origin.graph.sha256 != fp32.sha256
    if graph.origin.foreign is not None:
        return _of_another(graph, graph.origin.foreign)
    weights = graph.origin.weights
    if weights is None or weights.path is None:
        return False
    trained = checkpoint_path(graph.spec.name)
    source = (PACKAGED if weights.kind == "packaged" else graph.path.parent) / weights.path
    is_default = weights.kind == "packaged" or source.resolve() == trained.resolve()
    if is_default and trained.is_file():
        source = trained
    return source.is_file() and artifact.sha256(source) != weights.sha256


def _of_another(graph: Artifact, foreign: ForeignOrigin) -> bool:
    """Whether the original, or what it was built from, is another one now."""
    original, source = _original_path(graph, foreign), foreign.built_from
    if original.exists() and sha256_of_original(original, foreign.kind) != foreign.sha256:
        return True
    if source is None or source.path is None:
        return False
    weights = graph.path.parent / source.path
    return weights.exists() and sha256_of_weights(weights) != source.sha256


def _of_precision(graph: Artifact, precision: Precision) -> Artifact:
    if graph.precision is not precision:
        raise InvalidFileError(
            f"{graph.path} is an {graph.precision} graph; {precision} was asked for.",
            f"Give --engine {graph.precision}.",
        )
    return graph


def newest_export() -> str | None:
    """What the graph in `export/` is called that was made last."""
    graphs = [path for path in EXPORTS.glob("*.onnx") if artifact.manifest_path(path).is_file()]
    manifests = [artifact.read_manifest(path) for path in graphs]
    listed = [manifest for manifest in manifests if manifest.spec.output == "class_map"]
    newest = max(listed, key=lambda manifest: manifest.made_at, default=None)
    return None if newest is None else newest.spec.name


def checkpoint_of(graph: Artifact) -> Artifact:
    """The checkpoint a graph was made from, once it is still the same file."""
    if graph.origin.foreign is not None:
        raise InvalidRequestError(
            f"{graph.spec.name} was adopted: --engine torch runs networks of ours.", "Give --engine ort:fp32."
        )
    weights = graph.origin.weights
    if weights is None or weights.path is None:
        raise InvalidFileError(
            f"{artifact.manifest_path(graph.path)} names no checkpoint.",
            f"Export again: segdeploy export --model {graph.spec.name}",
        )
    # What training left may lie in any folder: it is only read, and known by its sha256.
    packaged = weights.kind == "packaged"
    place = below(PACKAGED, weights.path) if packaged else graph.path.parent / weights.path
    found = opening.read_again(place, graph.spec)
    if found.sha256 != weights.sha256:
        raise InvalidFileError(
            f"{found.path} is no longer the checkpoint that {graph.path} was made from.",
            f"Export again: segdeploy export --model {graph.spec.name}",
        )
    return found


def original_of(graph: Artifact) -> Path:
    """The file of somebody else that a graph was adopted from, once it is still the same file."""
    foreign = graph.origin.foreign
    again = f"Adopt it again: segdeploy adopt FILE --name {graph.spec.name} --overwrite"
    if foreign is None or foreign.path is None:
        raise InvalidFileError(f"{artifact.manifest_path(graph.path)} names no file of somebody else.", again)
    path = _original_path(graph, foreign)
    if not path.is_file():
        raise InvalidFileError(f"{path}, which {graph.path} was adopted from, is not here.", "Bring it back.")
    if sha256_of_original(path, foreign.kind) != foreign.sha256:
        raise InvalidFileError(f"{path} is no longer the file that {graph.path} was adopted from.", again)
    return path


def _original_path(graph: Artifact, foreign: ForeignOrigin) -> Path:
    """It may lie in any folder: it is only read, and known by its sha256."""
    return graph.path.parent / (foreign.path or "")


def sha256_of_original(path: Path, kind: ForeignKind) -> str:
    """Of a file that somebody else trained; of an ONNX file, with the external data that it reads."""
    return external_data.sha256(path) if kind == "ONNX" else artifact.sha256(path)


def sha256_of_weights(path: Path) -> str:
    """Of a file of weights, or of a folder's configuration and every file of weights in the order of their names."""
    if path.is_file():
        return artifact.sha256(path)
    files = [file for file in sorted(path.glob("*")) if file.name == "config.json" or file.suffix == ".safetensors"]
    return artifact.digest([[file.name, artifact.sha256(file)] for file in files])


def is_adopted(name: str) -> bool:
    """Whether a name is of a graph that somebody else trained."""
    path = artifact.graph_path(EXPORTS, name, Precision.FP32)
    return artifact.manifest_path(path).is_file() and artifact.read_manifest(path).origin.foreign is not None


def require_own(name: str | None) -> None:
    """An adopted graph is made from what it came as, and comes with its weights and its size."""
    if name is not None and is_adopted(name):
        raise InvalidRequestError(
            f"{name} was adopted: its float32 graph is made from what it came as.",
            f"Make it anew: segdeploy adopt FILE --name {name} --overwrite. Of low precision: --precision",
        )


def fp32_graph_of(graph: Artifact) -> Artifact:
    """The float32 graph that one of low precision was made from, once it is still the same file."""
    again = f"Export again: segdeploy export --model {graph.spec.name} --precision {graph.precision}"
    source = graph.origin.graph
    if source is None:
        raise InvalidFileError(f"{artifact.manifest_path(graph.path)} names no graph.", again)
    fp32 = artifact.read(below(graph.path.parent, source.path))
    if fp32.sha256 != source.sha256:
        raise InvalidFileError(f"{fp32.path} is no longer the graph that {graph.path} was made from.", again)
    return fp32


def files_to_prove() -> list[tuple[Path, str]]:
    """Every graph in `export/` and every plan in `engines/`, each with the engine that is the first to open it."""
    found = []
    for path in sorted((*EXPORTS.glob("*.onnx"), *ENGINES.glob("*.plan"))):
        if not artifact.manifest_path(path).is_file():
            continue
        if path.suffix == ".plan":
            plan = signature.read_manifest(path)
            found.append((path, f"{runtime_of(plan)}:{plan.precision}"))
        else:
            graph = artifact.read_manifest(path)
            found.append((path, f"{engines.REFERENCE}:{graph.precision}"))
    return found


# Plans


def graph_behind(file: Artifact) -> Artifact:
    """A graph itself, or the graph that a plan was built from, once it is still the same file."""
    return file if file.kind == "graph" else graph_of_plan(file)


def graph_of_plan(plan: Artifact) -> Artifact:
    """The graph that a plan was built from, once it is still the same file."""
    facts, source = signature.facts_of(plan), plan.origin.graph
    again = f"Build again: segdeploy build --model {plan.spec.name} --engine {facts.runtime}:{plan.precision}"
    if source is None:
        raise InvalidFileError(f"{artifact.manifest_path(plan.path)} names no graph.", again)
    graph = artifact.read(plan.path.parent / source.path)
    if graph.sha256 != source.sha256:
        raise InvalidFileError(f"{graph.path} is no longer the graph that {plan.path} was built from.", again)
    return graph


def graph_behind_plan(file: Artifact) -> Path | None:
    """Where the graph lies that a plan was built from, whether it is still there or not; None for another file."""
    source = file.origin.graph
    return file.path.parent / source.path if file.kind == "plan" and source is not None else None


def plan_for(name: str, runtime: str, precision: Precision) -> Artifact | None:
    """The plan of a network for this machine's GPU, whatever graph it is of; None where there is none."""
    require_name(name)
    target = engines.compiling(runtime).target()
    path = artifact.plan_path(ENGINES, name, runtime, precision, target)
    if not os.path.lexists(path):
        return None
    return _of_name(plan_of_engine(signature.read_manifest(path), runtime, precision), name)


def is_current(plan: Artifact) -> bool:
    """Whether a plan is of the graph that would be built now, as far as there is one here to tell."""
    name = plan.spec.name
    path = artifact.graph_path(EXPORTS, name, plan.precision, plan.form)
    if not path.is_file():
        return True
    graph = artifact.read(path)
    if plan.origin.graph is None or graph.sha256 != plan.origin.graph.sha256:
        return False
    return not (artifact.graph_path(EXPORTS, name, Precision.FP32).is_file() and is_stale(graph))


def plan_of_engine(plan: Artifact, runtime: str, precision: Precision) -> Artifact:
    """The plan, once it is one of that engine."""
    made_for = f"{runtime_of(plan)}:{plan.precision}"
    if made_for != f"{runtime}:{precision}":
        raise InvalidFileError(
            f"{plan.path} is a plan of {made_for}; {runtime}:{precision} was asked for.", f"Give --engine {made_for}."
        )
    return plan


def runtime_of(plan: Artifact) -> str:
    """The runtime that opens a plan."""
    runtime = signature.facts_of(plan).runtime
    if runtime not in [name for name, module in engines.modules().items() if module.OPENS == "plan"]:
        raise InvalidFileError(f"{plan.path} is a plan of {runtime!r}, which is none of ours.", "Build it again.")
    return runtime


# Images


def packaged_images() -> list[Path]:
    """Thirty-two small photographs of the data that the packaged weights were trained on."""
    return sorted((PACKAGED / "calibration").glob("*.png"))


def pictures_of(data: Path | DataFolder | None) -> list[Picture]:
    """Validation images with masks of a labelled folder, all images of an unlabelled one, or the packaged ones."""
    if data is None:
        return [Picture(image, None) for image in packaged_images()]
    if layouts.is_labelled(data):
        return list(layouts.open_folder(data).val)
    return [Picture(image, None) for image in dataset.image_files(DataFolder.of(data).path)]


def proof_images_of(graph: Artifact) -> list[Picture]:
    """What a graph is proven on where nothing else is given: what its weights are, or what it was adopted with."""
    if graph.origin.foreign is not None:
        return adopted_with(graph)
    kind = "packaged" if graph.origin.weights is None else graph.origin.weights.kind
    return proof_images(Weights(kind, checkpoint_of(graph)) if kind == "file" else Weights(kind, graph))


def images_at_hand(graph: Artifact, *, calibrate: Path | None, data: DataFolder | Path | None) -> list[Picture]:
    """The images that come with a graph: the packaged ones; without `data`, those that training validated on.

    Of an adopted graph, where neither folder is given, those that it was adopted with.
    """
    if graph.origin.foreign is not None:
        return adopted_with(graph) if calibrate is None and data is None else []
    weights = graph.origin.weights
    if weights is None or weights.kind != "file":
        return pictures_of(None)
    return [] if data is not None else validated_on(checkpoint_of(graph))


def proof_images(weights: Weights) -> list[Picture]:
    """The packaged images for packaged weights, one of them for random weights.

    Own weights have the images that training validated on, where they still are the same files. Raise
    InvalidRequestError where there are none.
    """
    if weights.kind != "file":
        return pictures_of(None)[: RANDOM_PROOF_IMAGES if weights.kind == "random" else PROOF_IMAGES]
    found = validated_on(weights.checkpoint)
    if not found:
        raise InvalidRequestError(
            f"there are no images to prove {weights.checkpoint.path} on: own weights need images of their own.",
            "Give some like those the network will see, best with masks/: --data DIR",
        )
    return found


def adopted_with(graph: Artifact) -> list[Picture]:
    """The images that a graph was adopted with, those that still are the same files.

    Raise InvalidRequestError where there are none.
    """
    foreign = graph.origin.foreign
    found = [] if foreign is None else _still_there(foreign.pictures, foreign.folder, graph.path.parent)
    if not found:
        raise InvalidRequestError(
            f"there are no images to prove {graph.path} on: it was adopted without any that are here.",
            f"Prove it on some like those it will see: segdeploy parity --model {graph.spec.name} --data DIR",
        )
    return found


def validated_on(source: Artifact) -> list[Picture]:
    """The images that training validated a checkpoint on, those that still are the same files."""
    training = source.origin.training
    return [] if training is None else _still_there(training.validation, training.folder, source.path.parent)


def _still_there(
    remembered: Sequence[ValidationPicture | ProofPicture], folder: ValidationFolder | None, beside: Path
) -> list[Picture]:
    """The pictures that have the bytes that are remembered; `beside`: what their paths are relative to."""
    labelled = {} if folder is None else _labelled(beside / folder.path, folder.layout)
    found = []
    for each in remembered:
        image, mask = beside / each.image, None if each.mask is None else beside / each.mask
        known = labelled.get(image.resolve()) if folder else Picture(image, mask)
        if known is not None and _is_same(known, each):
            found.append(known)
    return found


def _labelled(folder: Path, layout: str) -> dict[Path, Picture]:
    """The pictures of a labelled folder by their images; none where it is not whole any more."""
    try:
        pictures = layouts.open_folder(DataFolder(folder, layout)).pictures
    except SegdeployError:
        return {}
    return {picture.image.resolve(): picture for picture in pictures}


def _is_same(picture: Picture, known: ValidationPicture | ProofPicture) -> bool:
    """Whether an image and its mask have the bytes that are remembered."""
    if not all(file.is_file() for file in (picture.image, picture.mask) if file is not None):
        return False
    return artifact.sha256(picture.image) == known.image_sha256 and picture.mask_sha256 == known.mask_sha256
