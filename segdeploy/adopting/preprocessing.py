"""How the images of a foreign graph are prepared: as the options or the file say, or as labelled images decide."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from segdeploy.adopting import pictures
from segdeploy.adopting.options import AdoptOptions, UndecidedError
from segdeploy.data.dataset import Picture
from segdeploy.errors import InvalidRequestError
from segdeploy.origin import GraphReading, Preprocessing
from segdeploy.paths import shown
from segdeploy.progress import Progress
from segdeploy.proof import conventions
from segdeploy.spec import Fit, Spec

if TYPE_CHECKING:
    import onnx

    from segdeploy.graphs.said import Said

HOW = (
    "Say how its images are prepared: --preset imagenet|0..1|-1..1|0..255, or --scale --mean --deviation, "
    "with --channels rgb|bgr; or let labelled images find it: --data DIR"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Search:
    """What labelled pictures are asked about: a graph, how it is read, and what it tells apart."""

    path: Path
    model: "onnx.ModelProto"
    reading: GraphReading
    spec: Spec
    pictures: tuple[Picture, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """How an image is prepared, who says so, and the table where labelled images do."""

    how: Preprocessing
    source: str
    table: conventions.Table | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        return () if self.table is None else tuple(conventions.remarks(self.table))

    @property
    def fit(self) -> Fit | None:
        """How images meet the network, where labelled ones say it."""
        return None if self.table is None or self.table.letterboxed is None else "letterbox"


def prepared(search: Search, about: "Said | None", options: AdoptOptions, *, progress: Progress) -> Prepared:
    """How an image is prepared, by the first who says it: the options, the input's type, the file, labelled images.

    Raise InvalidRequestError where nobody does, UndecidedError where labelled images do not decide it.
    """
    own = search.reading.preprocessing
    count = len(own.mean)
    given = _given(options, count)
    if search.reading.dtype == "uint8":
        if given not in {None, _in_order(own, options)}:
            raise InvalidRequestError(
                f"{shown(search.path)} takes bytes: it prepares pixels itself.",
                "Leave --preset, --scale, --mean and --deviation out; --channels says their order.",
            )
        return Prepared(_in_order(own, options), "the input: it takes bytes")
    if given is not None:
        return Prepared(given, "the options")
    if about is not None and about.preprocessing is not None:
        return Prepared(_in_order(_of_channels(about.preprocessing, count), options), about.source)
    labelled = [picture for picture in search.pictures if picture.mask is not None]
    if not labelled:
        raise InvalidRequestError(f"{shown(search.path)} does not say how its images are prepared.", HOW)
    table = _tried(search, labelled, progress)
    if table.chosen is None:
        raise _undecided(search.path, table)
    return Prepared(table.chosen.preprocessing, f"labelled images: {table.chosen.name} is ahead", table)


def _tried(search: Search, labelled: Sequence[Picture], progress: Progress) -> conventions.Table:
    from segdeploy.graphs.original import Original

    few = pictures.spread(labelled, conventions.MOST_IMAGES)
    with progress(f"Trying preprocessings of {search.spec.name}", len(few)) as done:
        subject = conventions.Subject(Original(search.model), search.reading, search.spec)
        return conventions.tried(subject, few, done=done)


def _undecided(path: Path, table: conventions.Table) -> UndecidedError:
    best = table.stretching[0]
    if best.miou < conventions.LEAST:
        reason = conventions.letterboxes(table) or "none does well"
    else:
        reason = "; ".join(conventions.remarks(table))
    said = f"labelled images do not decide how those of {shown(path)} are prepared"
    remedy = HOW.partition("; or")[0] if table.letterboxed is None else "Have them decide with --fit letterbox."
    return UndecidedError(f"{said}: {reason} (best mIoU {best.miou:.3f}).", remedy, table)


def _given(options: AdoptOptions, count: int) -> Preprocessing | None:
    """What the options say; None where they say nothing."""
    if options.preset is not None:
        if options.preset not in conventions.PRESETS:
            known = ", ".join(conventions.PRESETS)
            raise InvalidRequestError(f"there is no preset {options.preset!r}.", f"Choose one of {known}.")
        return _in_order(_of_channels(conventions.PRESETS[options.preset], count), options)
    if options.scale is None and not options.mean and not options.deviation:
        return None
    mean, deviation = (
        _each(values, count, label)
        for values, label in ((options.mean or [0.0], "mean"), (options.deviation or [1.0], "deviation"))
    )
    scale = 1.0 if options.scale is None else options.scale
    if not 0 < scale < float("inf") or not all(0 < value < float("inf") for value in deviation):
        raise InvalidRequestError("scale and deviation are not numbers above 0.", "Give --scale 0.00392 --deviation 1")
    channels: Literal["rgb", "bgr", "grey"] = "grey" if count == 1 else options.channels or "rgb"
    return Preprocessing(scale=scale, mean=mean, deviation=deviation, channels=channels)


def _each(values: Sequence[float], count: int, label: str) -> tuple[float, ...]:
    """One value for each channel, of one for all or one a channel."""
    found = tuple(map(float, values)) * (count if len(values) == 1 else 1)
    if len(found) != count or not all(np.isfinite(found)):
        raise InvalidRequestError(
            f"the {label} {list(values)} is not of {count} channels.", "Give one number, or one a channel."
        )
    return found


def _of_channels(how: Preprocessing, count: int) -> Preprocessing:
    """Of three channels for one: the grey of their means."""
    if count == len(how.mean):
        return how
    mean, deviation = ((sum(values) / len(values),) for values in (how.mean, how.deviation))
    return dataclasses.replace(how, mean=mean, deviation=deviation, channels="grey")


def _in_order(how: Preprocessing, options: AdoptOptions) -> Preprocessing:
    """With the order of the channels that the options ask for; each colour keeps its numbers."""
    if options.channels in {None, how.channels} or how.channels == "grey":
        return how
    return dataclasses.replace(how, mean=how.mean[::-1], deviation=how.deviation[::-1], channels=options.channels)


def with_normalisation(spec: Spec, how: Preprocessing) -> Spec:
    """Mean and deviation of RGB values in 0..1, as a Spec has them."""
    mean, deviation = (_of_rgb(values, how) for values in (how.mean, how.deviation))
    return dataclasses.replace(spec, mean=mean, std=deviation)


def _of_rgb(values: tuple[float, ...], how: Preprocessing) -> tuple[float, float, float]:
    shares = [value / (conventions.LARGEST * how.scale) for value in values] * (3 // len(values))
    red, green, blue = shares[::-1] if how.channels == "bgr" else shares
    return red, green, blue
