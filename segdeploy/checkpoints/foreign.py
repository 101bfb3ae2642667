"""Checkpoints that others wrote, as networks of ours: detected, converted, and every tensor accounted for."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy import artifact, extras, models, palettes
from segdeploy._version import __version__
from segdeploy.checkpoints import _strangers, families, reading, unwrapping
from segdeploy.checkpoints.families import Change, Reading
from segdeploy.checkpoints.unwrapping import Weights
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.origin import ImportOrigin, Origin
from segdeploy.palettes import Palette
from segdeploy.spec import Precision, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from segdeploy.blocks import Network

COUNTER = "num_batches_tracked"  # of a norm: files of before PyTorch 0.4.1 lack it, and only training counts it
SIGMOID_CLASSES = ("background", "foreground")
MOST_SHOWN = 4  # keys in an error
LOGITS = {  # the layers that have a channel for each class
    "deeplabv3": ("classifier", "auxiliary.2"),
    "pspnet": ("head.2", "auxiliary.2"),
    "segnet": ("classifier",),
    "unet": ("classifier",),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What a file cannot say of itself.

    `classes`: names by index; None takes those in the file, else those of a data set with so many. `colours` go with
    them. `size`: (height, width) of the network's input. `variant`: options of the network, for conventions that keys
    do not tell. `part`: which of several networks in the file. `force`: leave tensors out that no network of ours has.
    """

    classes: tuple[str, ...] | None = None
    colours: tuple[palettes.Colour, ...] | None = None
    size: tuple[int, int] | None = None
    variant: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    part: str | None = None
    force: bool = False


DEFAULT = ImportOptions()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KeyReport:
    """What became of every tensor of a file.

    `taken` have the same name in ours; `renamed`: the file's name to ours; `missing`: of ours, not in the file, which
    it can do without; `left_over`: of the file, in none of ours. `assumed`: conventions that the file does not tell.
    `classes_from`: the file, "given", or what they are guessed from.
    """

    family: str
    wrapping: tuple[str, ...]
    taken: tuple[str, ...]
    renamed: Mapping[str, str]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    assumed: Mapping[str, str | int | float | bool]
    classes_from: str


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Foreign:
    """A foreign checkpoint, read: our network's Spec, its tensors by our names, and the report."""

    path: Path
    spec: Spec
    state: "Mapping[str, Tensor]"
    report: KeyReport

    def network(self) -> "Network":
        """The network in evaluation mode, on the CPU, in float32."""
        network = _without_memory(self.spec)
        network.load_state_dict(dict(self.state), assign=True)
        return network.eval()

    def as_artifact(self) -> artifact.Artifact:
        sha256 = artifact.sha256(self.path)
        origin = _origin(self.path, self.report, sha256)
        return artifact.Artifact(
            path=self.path,
            kind="checkpoint",
            precision=Precision.FP32,
            spec=self.spec,
            sha256=sha256,
            made_at=artifact.now(),
            origin=Origin(command="import", version=__version__, imported=origin),
        )


def _origin(path: Path, report: KeyReport, sha256: str) -> ImportOrigin:
    return ImportOrigin(
        file=path.name,
        sha256=sha256,
        family=report.family,
        taken=len(report.taken),
        renamed=len(report.renamed),
        missing=len(report.missing),
        left_over=len(report.left_over),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Detected:
    """A file whose family is known."""

    path: Path
    title: str
    weights: Weights
    reading: Reading


def read(path: Path, options: ImportOptions = DEFAULT) -> Foreign:
    """Take a foreign checkpoint for one of the four networks.

    Raise InvalidFileError for what is none of them, lacks a tensor, has one of another shape or, without `force`, one
    that no network of ours has; InvalidRequestError where an option is missing or does not fit.
    """
    found = _detected(path, options)
    if found.reading.is_encoder:
        networks = " or ".join(found.reading.fits)
        raise InvalidFileError(
            f"{path} is {found.title}, the encoder of a network without what draws masks.",
            f"Train {networks} with it: segdeploy train --model {found.reading.fits[0]} --weights {path} --data DIR",
        )
    model, variant = found.reading.fits[0], {**found.reading.variant, **found.reading.assumed, **options.variant}
    spec, classes_from = _spec(model, _without_defaults(model, variant), found.reading, options)
    network = _without_memory(spec)
    network.check_size(spec.height, spec.width)
    changes = {**found.reading.changes, **_of_one_class(model, found.reading)}
    state, report = _converted(found, network, changes, options, classes_from)
    return Foreign(path, spec, state, report)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Encoder:
    """What training begins with: the options of the network, the tensors of its encoder by our names, the report."""

    variant: Mapping[str, Any]
    state: "Mapping[str, Tensor]"
    report: KeyReport
    origin: ImportOrigin


def read_encoder(path: Path, model: str, variant: Mapping[str, Any]) -> Encoder:
    """Take a foreign classifier for the encoder of a network.

    `variant`: options that the user gave. Raise InvalidRequestError where they, or the network, are not the encoder's.
    """
    found = _detected(path, DEFAULT)
    if not found.reading.is_encoder or model not in found.reading.fits:
        fits = f"for {' or '.join(found.reading.fits)}" if found.reading.is_encoder else "a whole network, no encoder"
        raise InvalidRequestError(
            f"{path} is {found.title}: {fits}, not for {model}.", "Give the weights of an encoder that the network has."
        )
    wanted = _without_defaults(model, {**found.reading.variant, **found.reading.assumed, **variant})
    for option, value in found.reading.variant.items():
        if variant.get(option, value) != value:
            raise InvalidRequestError(
                f"{path} has {option}={value}, and {option}={variant[option]} was asked for.", "Leave the option out."
            )
    import torch

    with torch.device("meta"):
        network = models.build(model, 1, **wanted)
    state, report = _converted(found, network, found.reading.changes, DEFAULT, "")
    return Encoder(wanted, state, report, _origin(path, report, artifact.sha256(path)))


def _detected(path: Path, options: ImportOptions) -> _Detected:
    weights = unwrapping.unwrap(reading.open_file(path), path, part=options.part)
    family = families.recognised(weights.tensors)
    if family is None:
        kind = _strangers.named(weights.tensors)
        shown = ", ".join(list(weights.tensors)[:MOST_SHOWN])
        raise InvalidFileError(
            f"{path} is {kind}, none of {', '.join(models.names())} in a form that is known here ({shown}, ...).",
            f"Known are {', '.join(families.names())}; an encoder goes to segdeploy train --weights.",
        )
    try:
        found = family.read(weights)
    except InvalidFileError as error:
        raise InvalidFileError(f"{path} is {family.TITLE}, but {error.what}", error.remedy) from error
    except (KeyError, IndexError, ValueError) as error:
        raise InvalidFileError(
            f"{path} looks like {family.TITLE}, but lacks {error}.", "Save all of the network's weights."
        ) from error
    return _Detected(path, family.TITLE, weights, found)


def _without_defaults(model: str, variant: Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ from the network's own."""
    defaults = models.defaults(model)
    return {name: value for name, value in variant.items() if name not in defaults or defaults[name] != value}


@extras.named_where_missing()
def _without_memory(spec: Spec) -> "Network":
    """The network by its shapes alone: whatever a file claims, nothing is taken before they are compared."""
    import torch

    with torch.device("meta"):
        return models.rebuild(spec)


# Classes and preprocessing


def _spec(model: str, variant: dict[str, Any], found: Reading, options: ImportOptions) -> tuple[Spec, str]:
    count = len(SIGMOID_CLASSES) if found.count == 1 else found.count
    palette, classes_from = _classes(count, found, options)
    height, width = options.size or found.size
    spec = Spec(model, variant, palette.classes, palette.colours, height, width, mean=found.mean, std=found.std)
    return spec, classes_from


def _classes(count: int, found: Reading, options: ImportOptions) -> tuple[Palette, str]:
    if options.classes is not None:
        names, colours, source = options.classes, options.colours, "given"
        if len(names) != count:
            raise InvalidRequestError(
                f"{len(names)} classes were given, and the network draws {count}.", "Give one name for each: --classes"
            )
    elif len(found.classes) == count and len(set(found.classes)) == count:
        names, colours, source = tuple(found.classes), tuple(found.colours) or None, "the file"
    elif found.count == 1:
        names, colours, source = SIGMOID_CLASSES, None, "its one channel, a sigmoid"
    elif (guess := palettes.OF_COUNT.get(count)) is not None:
        return guess.palette, f"a guess: {guess.data} has {count} classes"
    else:
        names, colours, source = tuple(f"class_{index}" for index in range(count)), None, "their count alone"
    return Palette(names, colours or palettes.default_colours(count)), source


def _of_one_class(model: str, found: Reading) -> dict[str, Change]:
    """One channel is a sigmoid at 0.5: with a background of logit zero, the class map is the same."""
    if found.count != 1:
        return {}
    changes = {}
    for layer in LOGITS[model]:
        for kind in ("weight", "bias"):
            change = found.changes.get(f"{layer}.{kind}")
            source = f"{found.modules[layer]}.{kind}" if layer in found.modules else None
            if change is not None:
                changes[f"{layer}.{kind}"] = Change(
                    change.sources, lambda *each, make=change.make: _with_zero(make(*each))
                )
            elif source is not None:
                changes[f"{layer}.{kind}"] = Change((source,), _with_zero)
    return changes


def _with_zero(values: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([np.zeros_like(values), values])


# Tensors


def _converted(
    found: _Detected, network: "Network", changes: Mapping[str, Change], options: ImportOptions, classes_from: str
) -> "tuple[dict[str, Tensor], KeyReport]":
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    sources = dict(_sources(found, wanted, changes))
    names = _report(found, wanted, sources, options)
    made = {name: _made(found, name, sources[name], wanted[name], changes.get(name)) for name in sources}
    for name in names.missing:
        made[name] = np.zeros(wanted[name], np.int64)
    report = dataclasses.replace(names, classes_from=classes_from, assumed=_assumed(found.reading, options))
    return {name: _tensor(name, array) for name, array in made.items()}, report


def _assumed(found: Reading, options: ImportOptions) -> dict[str, Any]:
    return {name: value for name, value in found.assumed.items() if name not in options.variant}


def _sources(
    found: _Detected, wanted: Mapping[str, tuple[int, ...]], changes: Mapping[str, Change]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each tensor of ours that the file has, with the tensors of the file that it is made of."""
    for name in wanted:
        module, _, kind = name.rpartition(".")
        if name in changes:
            named = changes[name].sources
        elif module in found.reading.modules:
            named = (f"{found.reading.modules[module]}.{kind}",)
        else:
            continue
        if all(each in found.weights.tensors for each in named):
            yield name, named


def _report(
    found: _Detected,
    wanted: Mapping[str, tuple[int, ...]],
    sources: Mapping[str, tuple[str, ...]],
    options: ImportOptions,
) -> KeyReport:
    modules = found.reading.modules
    own = [name for name in wanted if not found.reading.is_encoder or name.rpartition(".")[0] in modules]
    missing = [name for name in own if name not in sources]
    if lacking := [name for name in missing if not name.endswith(COUNTER)]:
        raise InvalidFileError(
            f"{found.path} is {found.title}, but lacks {_some(lacking)}.", "Save all of the network's weights."
        )
    used = {each for named in sources.values() for each in named}
    left_over = [name for name in found.weights.tensors if name not in used] + list(found.weights.apart)
    unknown = [name for name in left_over if not name.startswith(found.reading.unused or ("\0",))]
    if unknown and not options.force:
        raise InvalidFileError(
            f"{found.path} is {found.title} with {len(unknown)} tensors that it should not have: {_some(unknown)}.",
            "It may be another network. To leave them out: --force",
        )
    same = [name for name, named in sources.items() if named == (name,)]
    renamed = {each: name for name, named in sources.items() if named != (name,) for each in named}
    return KeyReport(
        family=found.title,
        wrapping=found.weights.wrapping,
        taken=tuple(same),
        renamed=renamed,
        missing=tuple(missing),
        left_over=tuple(left_over),
        assumed={},
        classes_from="",
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:MOST_SHOWN])
    return shown if len(names) <= MOST_SHOWN else f"{shown} and {len(names) - MOST_SHOWN} more"


def _made(
    found: _Detected, name: str, sources: tuple[str, ...], shape: tuple[int, ...], change: Change | None
) -> NDArray[Any]:
    stored = [found.weights.tensors[each] for each in sources]
    if change is None and stored[0].shape != shape:
        raise _other_shape(found, sources[0], stored[0].shape, shape)
    array = stored[0].read() if change is None else change.make(*(each.read().astype(np.float64) for each in stored))
    if array.shape != shape:
        raise _other_shape(found, sources[0], array.shape, shape)
    if not name.endswith(COUNTER) and not np.isfinite(array).all():
        raise InvalidFileError(f"{found.path}: {sources[0]} holds NaN or infinity.", "Take another checkpoint.")
    return array


def _other_shape(found: _Detected, name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> InvalidFileError:
    if len(shape) == len(wanted) and shape[2:] == wanted[2:] and wanted[1:2] == (3,) and shape[1] != wanted[1]:
        return InvalidFileError(
            f"{found.path} takes {shape[1]} channels: {name} is {shape}.", "Photographs have three: train it on RGB."
        )
    return InvalidFileError(
        f"{found.path} is {found.title}, but {name} is {shape} where {wanted} belongs.",
        "It is another network, or another variant of it: give --option where it has one.",
    )


def _tensor(name: str, array: NDArray[Any]) -> "Tensor":
    import torch

    kind = np.int64 if name.endswith(COUNTER) else np.float32
    return torch.from_numpy(np.ascontiguousarray(array, kind).reshape(array.shape).copy())
