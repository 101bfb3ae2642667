"""How a photograph of any size meets a network of one size, and how what it draws becomes the photograph's class map.

Training, evaluation, proof, timing and `infer` all take it from here. In words: `spec.Spec.fit`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, Protocol, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from segdeploy.errors import InvalidRequestError
from segdeploy.images import Photograph
from segdeploy.spec import MAX_PIXELS, Fit, Spec

UInt8: TypeAlias = NDArray[np.uint8]
Classify: TypeAlias = Callable[[UInt8], UInt8]  # uint8 RGB (N, H, W, 3) at network size -> class maps (N, H', W')
Inside: TypeAlias = tuple[slice, slice]
Decode: TypeAlias = Literal["exact", "scaled"]
DECODINGS: tuple[Decode, ...] = get_args(Decode)
SCALED_AT_LEAST = 4  # times the pixels a side that the network takes
WHOLE: Inside = (slice(None), slice(None))
USUAL_OVERLAP = 8  # the part of a tile's side that is its overlap, where a network has no margin of its own


class Rows(Protocol):
    """A fitted photograph, asked for from the top down."""

    def rows(self, first: int, last: int, /) -> UInt8:
        """(last - first, width, 3)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """Along one side of a fitted photograph: a class map begins at `start`, and decides from `first` to `last`.

    `start` is below 0 where what surrounds the photograph comes first.
    """

    start: int
    first: int
    last: int

    @property
    def inside(self) -> slice:
        """What it decides, counted from the class map's own beginning."""
        return slice(self.first - self.start, self.last - self.start)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Which parts of a fitted photograph (height, width) the network sees: every row span with every column span.

    Around the photograph it is mirrored, or filled with a colour.
    """

    height: int
    width: int
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]
    fill: tuple[int, int, int] | None = None

    @property
    def tiles(self) -> int:
        return len(self.rows) * len(self.columns)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """One input of the network (H, W, 3), and where its class map (H', W') shows the photograph.

    `window`: the same pixels in the fitted photograph; the whole of it, but for a tile.
    """

    image: UInt8
    inside: Inside
    window: Inside


def network_size(spec: Spec) -> tuple[int, int]:
    """(height, width) of the class map: the network's input without its margin."""
    return spec.height - 2 * spec.margin, spec.width - 2 * spec.margin


def usual_overlap(spec: Spec) -> int:
    """None where valid convolutions bring their own context; else an eighth of the shorter side."""
    return 0 if spec.margin else min(network_size(spec)) // USUAL_OVERLAP


def with_fit(spec: Spec, fit: Fit | None, overlap: int | None = None) -> Spec:
    """A Spec whose photographs meet the network in another way; None leaves what it says.

    Raise InvalidRequestError for an unknown fit, and for an overlap that leaves nothing of a tile.
    """
    fit = spec.fit if fit is None else fit
    if overlap and fit not in {"tile", "auto"}:
        raise InvalidRequestError(
            f"--overlap is for tiles, and the fit is {fit}.", "Leave it out, or give --fit tile or auto."
        )
    if overlap is None:
        overlap = spec.overlap if spec.fit == fit else usual_overlap(spec) if fit in {"tile", "auto"} else 0
    return dataclasses.replace(spec, fit=fit, overlap=overlap)


def least_decoded(spec: Spec, decode: Decode) -> tuple[int, int] | None:
    """(height, width) that a photograph is decoded at, or more: four times the network's; None: every pixel.

    Raise InvalidRequestError for an unknown decoding, and where tiles take every pixel.
    """
    if decode not in DECODINGS:
        raise InvalidRequestError(f"there is no decoding {decode!r}.", f"Choose {' or '.join(DECODINGS)}.")
    if decode == "exact":
        return None
    if spec.fit in {"tile", "auto"}:
        raise InvalidRequestError(
            f"--decode {decode} leaves pixels out, and the fit {spec.fit} takes every one.",
            "Leave it out, or give --fit stretch or letterbox.",
        )
    height, width = network_size(spec)
    return SCALED_AT_LEAST * height, SCALED_AT_LEAST * width


def is_tiled(spec: Spec, height: int, width: int) -> bool:
    """Whether a photograph of that size is cut into tiles instead of being resized."""
    return spec.fit == "tile" or (spec.fit == "auto" and height * width > MAX_PIXELS)


def plan(spec: Spec, height: int, width: int) -> Plan:
    """How a photograph of (height, width) is fitted."""
    sides = network_size(spec)
    if is_tiled(spec, height, width):
        rows, columns = (_spans(*each, spec.overlap) for each in zip((height, width), sides, strict=True))
        return Plan(height, width, rows, columns)
    if spec.fit != "letterbox":
        rows, columns = ((Span(0, 0, side),) for side in sides)
        return Plan(*sides, rows, columns)
    scale = min(sides[0] / height, sides[1] / width)
    fitted = [max(1, round(side * scale)) for side in (height, width)]
    rows, columns = ((Span(-((side - small) // 2), 0, small),) for side, small in zip(sides, fitted, strict=True))
    return Plan(fitted[0], fitted[1], rows, columns, spec.fill)


def _spans(length: int, side: int, overlap: int) -> tuple[Span, ...]:
    """Tiles of `side` that cover `length`: neighbours share 2 `overlap` or more, and each decides up to the middle.

    None reaches beyond the photograph, whose border a network meets as it did in training; what is shorter than a tile
    lies in the middle of it.
    """
    if length <= side:
        return (Span(-((side - length) // 2), 0, length),)
    starts = [*range(0, length - side, side - 2 * overlap), length - side]
    ends = [(start + side + following) // 2 for start, following in itertools.pairwise(starts)]
    return tuple(Span(*each) for each in zip(starts, [0, *ends], [*ends, length], strict=True))


def prepared(photo: UInt8 | Photograph, spec: Spec, place: int = 0) -> UInt8:
    """(H0, W0, 3) -> (H, W, 3): an input of the network; of a photograph in tiles the one at `place`."""
    return seen(photo, spec, place).image


def seen(photo: UInt8 | Photograph, spec: Spec, place: int = 0) -> Seen:
    """(H0, W0, 3) -> an input of the network; of a photograph in tiles the one at `place`, counted round and round."""
    photograph = photo if isinstance(photo, Photograph) else Photograph.of(photo)
    about = plan(spec, photograph.height, photograph.width)
    height, width = network_size(spec)
    which = place % about.tiles
    row, column = about.rows[which // len(about.columns)], about.columns[which % len(about.columns)]
    image = _tile(about, spec, _band(about, spec, row, InMemory.of(photograph, about)), column)
    down, across = _shown(row, height, about.height), _shown(column, width, about.width)
    return Seen(image, (down[0], across[0]), (down[1], across[1]))


def _shown(span: Span, side: int, length: int) -> tuple[slice, slice]:
    """Where a class map shows the photograph, and the same in the photograph: what its neighbour decides included."""
    first, last = max(0, span.start), min(length, span.start + side)
    return slice(first - span.start, last - span.start), slice(first, last)


def drawn(photo: UInt8 | Photograph, spec: Spec, classify: Classify) -> UInt8:
    """(H0, W0, 3) -> the class map of the fitted photograph: of the network's size, or the photograph's if in tiles.

    `images.to_photo_size` brings it to the photograph's size.
    """
    photograph = photo if isinstance(photo, Photograph) else Photograph.of(photo)
    about = plan(spec, photograph.height, photograph.width)
    parts = list(strips(about, spec, InMemory.of(photograph, about), classify))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def strips(
    about: Plan,
    spec: Spec,
    photo: Rows,
    classify: Classify,
    each: "Callable[[Callable[[Span], UInt8], Iterable[Span]], Iterable[UInt8]]" = map,
) -> Iterator[UInt8]:
    """The class map of a fitted photograph (h, width) for each row of tiles, from the top down.

    A tile of one colour is computed once: slides and sparse images are mostly empty. `each`: `map`, or that of a pool
    of threads, for the tiles of a row.
    """
    of_one_colour: dict[bytes, UInt8] = {}

    def drawn_in(column: Span) -> UInt8:
        image = _tile(about, spec, band, column)
        colour = _only_colour(image) if about.tiles > 1 else None
        class_map = None if colour is None else of_one_colour.get(colour)
        if class_map is None:
            class_map = classify(image[None])[0]
            if colour is not None:
                of_one_colour[colour] = class_map
        return class_map[row.inside, column.inside]

    for row in about.rows:
        band = _band(about, spec, row, photo)
        strip = np.empty((row.last - row.first, about.width), np.uint8)
        for column, part in zip(about.columns, each(drawn_in, about.columns), strict=True):
            strip[:, column.first : column.last] = part
        yield strip


def _only_colour(image: UInt8) -> bytes | None:
    first = image[0, 0]
    corners = image[:: len(image) - 1 or 1, :: image.shape[1] - 1 or 1]
    return first.tobytes() if (corners == first).all() and (image == first).all() else None


@dataclasses.dataclass(frozen=True, slots=True)
class InMemory:
    """A fitted photograph whose pixels are all here."""

    pixels: UInt8

    @classmethod
    def of(cls, photo: Photograph, about: Plan) -> "InMemory":
        return cls(photo.resized(height=about.height, width=about.width))

    def rows(self, first: int, last: int, /) -> UInt8:
        return self.pixels[first:last]


def _band(about: Plan, spec: Spec, row: Span, photo: Rows) -> UInt8:
    """(H, width, 3): the rows of an input of the network, with its margin."""
    height, _ = network_size(spec)
    if about.fill is None:
        places = _mirrored(row.start - spec.margin, spec.height, about.height)
        first = int(places.min())
        return _taken(photo.rows(first, int(places.max()) + 1), places - first, axis=0)
    band = np.empty((height, about.width, 3), np.uint8)
    band[:] = about.fill
    band[row.inside] = photo.rows(row.first, row.last)
    return _taken(band, _mirrored(-spec.margin, spec.height, height), axis=0)


def _tile(about: Plan, spec: Spec, band: UInt8, column: Span) -> UInt8:
    """(H, W, 3), out of a band (H, width, 3)."""
    _, width = network_size(spec)
    if about.fill is None:
        return _taken(band, _mirrored(column.start - spec.margin, spec.width, about.width), axis=1)
    tile = np.empty((len(band), width, 3), np.uint8)
    tile[:] = about.fill
    tile[:, column.inside] = band
    return _taken(tile, _mirrored(-spec.margin, spec.width, width), axis=1)


def with_margin(photo: UInt8, margin: int) -> UInt8:
    """(H, W, 3) -> (H + 2 margin, W + 2 margin, 3), mirrored as U-Net's overlap-tile strategy does (sec. 2)."""
    rows, columns = (_mirrored(-margin, side + 2 * margin, side) for side in photo.shape[:2])
    return _taken(_taken(photo, rows, axis=0), columns, axis=1)


def _mirrored(start: int, count: int, length: int) -> NDArray[np.intp]:
    """Of `count` places from `start` on, those of 0..length-1 that they show when what lies outside is mirrored."""
    period = max(1, 2 * (length - 1))
    places = np.abs(np.arange(start, start + count)) % period
    return np.minimum(places, period - places) if length > 1 else places


def _taken(pixels: UInt8, places: NDArray[np.intp], *, axis: int) -> UInt8:
    """As `take`, without a copy where the places follow one another."""
    first, last = int(places[0]), int(places[-1])
    if last - first + 1 != len(places) or (np.diff(places) != 1).any():
        return pixels.take(places, axis=axis)
    return pixels[first : last + 1] if axis == 0 else pixels[:, first : last + 1]
