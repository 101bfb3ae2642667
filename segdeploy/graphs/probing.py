"""What a foreign graph is, found by running it: what it declares of its shapes may be wrong, what comes out is not."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.graphs import foreign, outputs, reading
from segdeploy.graphs.foreign import IMAGE_RANK
from segdeploy.graphs.original import Original
from segdeploy.graphs.outputs import Seen, Wish
from segdeploy.origin import GraphReading, Preprocessing
from segdeploy.paths import shown
from segdeploy.spec import MAX_PIXELS

if TYPE_CHECKING:
    import onnx

Dtype = Literal["float32", "float16", "float64", "uint8"]
DTYPES: dict[str, Dtype] = {"FLOAT": "float32", "FLOAT16": "float16", "DOUBLE": "float64", "UINT8": "uint8"}
OF_PHOTOS = "Give a network of photographs, in colour or grey: images of more bands are not read here."
MULTIPLES = (8, 16, 32, 64)
COUNTS = (2, 3, 4, 8, 16, 32)  # of images that a graph may be written for
GUESS = Preprocessing(scale=1 / 255, mean=(0.5,) * 3, deviation=(0.25,) * 3)  # to see what comes out, whatever it means
RAW = Preprocessing(scale=1.0, mean=(0.0,) * 3, deviation=(1.0,) * 3)


@dataclasses.dataclass(frozen=True, slots=True)
class Sight:
    """What a graph is: how it is read at `size` (height, width), how many classes it tells apart.

    `plane`: the sides (K, h, w) of its output for one image. `notes`: what is worth saying.
    """

    reading: GraphReading
    size: tuple[int, int]
    classes: int
    plane: tuple[int, int, int]
    notes: tuple[str, ...] = ()


def look(path: Path, model: "onnx.ModelProto", wish: Wish, probes: Sequence[NDArray[np.uint8]]) -> Sight:
    """Run a graph on images (any size, RGB) and say what it is.

    Raise InvalidFileError where it is no segmentation, InvalidRequestError where an option is missing or wrong.
    """
    value = foreign.image_input(path, model)
    sides, dtype = foreign.sides_of(value), _dtype(path, value)
    if len(sides) != IMAGE_RANK:
        raise foreign.refused(path, f"takes an input of rank {len(sides)}: an image has rank {IMAGE_RANK}")
    inputs = [_input(value.name, layout, channels, dtype) for layout, channels in _layouts(path, sides)]
    size = _size(path, sides, inputs[0].layout, wish.size)
    _bounded(path, model, inputs[0], size)
    return _Trial(path, Original(model), inputs, size, tuple(sides), wish, probes).sight(model)


def _dtype(path: Path, value: "onnx.ValueInfoProto") -> Dtype:
    from onnx import TensorProto

    name = TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    if name not in DTYPES:
        raise foreign.refused(path, f"takes {name.lower()}, not pixels: {', '.join(DTYPES.values())}")
    return DTYPES[name]


def _layouts(path: Path, sides: Sequence[int | None]) -> list[tuple[str, int]]:
    """The orders of axes that the declared sides allow, with the number of channels; those with a fixed one first."""
    fits = foreign.layouts_of(sides)
    if not fits:
        shape = [side or "any" for side in sides]
        raise foreign.refused(path, f"takes an input of shape {shape}: not one image of 1 or 3 channels", OF_PHOTOS)
    return sorted(fits, key=lambda fit: sides[fit[0].index("C")] is None)


def _input(name: str, layout: str, channels: int, dtype: Dtype) -> GraphReading:
    how = RAW if dtype == "uint8" else GUESS
    if channels == 1:
        how = dataclasses.replace(how, mean=how.mean[:1], deviation=how.deviation[:1], channels="grey")
    return GraphReading(input=name, layout=layout, dtype=dtype, preprocessing=how, output="", axes="", kind="scores")


def _size(path: Path, sides: Sequence[int | None], layout: str, asked: tuple[int, int] | None) -> tuple[int, int]:
    declared = sides[layout.index("H")], sides[layout.index("W")]
    if None in declared and asked is None:
        raise InvalidRequestError(
            f"{shown(path)} takes images of any size: which one it was trained at, the file does not say.",
            "Give it: --size HEIGHTxWIDTH",
        )
    chosen = asked or (declared[0] or 0, declared[1] or 0)
    if any(side not in {None, own} for side, own in zip(declared, chosen, strict=True)):
        fixed = "x".join(str(side or "any") for side in declared)
        raise InvalidRequestError(
            f"{shown(path)} takes {fixed} pixels alone, not {chosen[0]}x{chosen[1]}.", "Leave --size out."
        )
    if chosen[0] * chosen[1] > MAX_PIXELS:
        raise foreign.refused(path, f"takes {chosen[0]}x{chosen[1]} pixels, more than {MAX_PIXELS:,}")
    return chosen


def _bounded(path: Path, model: "onnx.ModelProto", how: GraphReading, size: tuple[int, int]) -> None:
    """Refuse what would take all memory, before it is run; shapes that the file declares count for nothing."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    channels = len(how.preprocessing.mean)
    known = {"N": 1, "C": channels, "H": size[0], "W": size[1]}
    for side, axis in zip(copy.graph.input[0].type.tensor_type.shape.dim, how.layout, strict=True):
        side.dim_value = known[axis]
    for output in copy.graph.output:
        output.type.tensor_type.ClearField("shape")
    foreign.require_bounded(path, copy)


def fitted(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A probe at some size: nearest neighbour is enough to see what comes out."""
    rows, columns = (reading.nearest(side, wanted) for side, wanted in zip(image.shape, size, strict=False))
    return np.ascontiguousarray(image[rows][:, columns])


@dataclasses.dataclass(frozen=True, slots=True)
class _Trial:
    """A graph, the ways an image may be given to it, and what is asked of it."""

    path: Path
    original: Original
    inputs: Sequence[GraphReading]
    size: tuple[int, int]
    sides: tuple[int | None, ...]
    wish: Wish
    probes: Sequence[NDArray[np.uint8]]

    def sight(self, model: "onnx.ModelProto") -> Sight:
        how, seen = self._working()
        how = dataclasses.replace(how, output=seen.name, axes=seen.axes)
        planes = [reading.planes(self._run(how, probe, [seen.name])[seen.name], how) for probe in self.probes]
        kind = outputs.kind_of(self.path, model, how, planes, self.wish)
        depth, height, width = planes[0].shape
        return Sight(kind.reading, self.size, kind.classes, (depth, height, width), (*self._notes(seen), *kind.notes))

    def _working(self) -> tuple[GraphReading, Seen]:
        """The first way to give it an image in which it runs and gives a mask."""
        refused = None
        for how in self.inputs:
            try:
                found = self._run(how, self.probes[0])
            except InvalidFileError:
                continue
            try:
                return how, outputs.best(self.path, found, self.size, self.wish, prefer=how.layout)
            except InvalidFileError as error:
                refused = refused or error
        raise refused or self._unfit()

    def _run(
        self, how: GraphReading, probe: NDArray[np.uint8], wanted: list[str] | None = None
    ) -> dict[str, NDArray[Any]]:
        return self.original.run(how.input, reading.as_given(fitted(probe, self.size), how), wanted)

    def _unfit(self) -> Exception:
        """Why an image cannot be given to it: a size that it declares and cannot take, or the graph itself."""
        asked = "x".join(map(str, self.size))
        for multiple in MULTIPLES if None in self.sides else ():
            height, width = (-(-side // multiple) * multiple for side in self.size)
            if self._takes((height, width)):
                return InvalidRequestError(
                    f"{shown(self.path)} cannot take {asked} pixels, though it declares any size.",
                    f"Give a multiple of {multiple}: --size {height}x{width}",
                )
        if (count := next(filter(self._takes_images, COUNTS), None)) is not None:
            reason = f"takes {count} images at once, and not one alone"
            return foreign.refused(self.path, reason, "Export it again for one image, or with a dynamic batch.")
        try:
            self._run(self.inputs[0], self.probes[0])
        except InvalidFileError as error:
            return foreign.refused(self.path, f"does not run: {error.what}", "Give another --size, or export it again.")
        return foreign.refused(self.path, "does not run")

    def _takes(self, size: tuple[int, int]) -> bool:
        other = dataclasses.replace(self, size=size)
        for how in self.inputs:
            try:
                other._run(how, self.probes[0])  # noqa: SLF001 - of the same class
            except InvalidFileError:
                continue
            return True
        return False

    def _takes_images(self, count: int) -> bool:
        how = self.inputs[0]
        given = reading.as_given(fitted(self.probes[0], self.size), how)
        try:
            self.original.run(how.input, given.repeat(count, axis=how.layout.index("N")))
        except InvalidFileError:
            return False
        return True

    def _notes(self, seen: Seen) -> tuple[str, ...]:
        count, (height, width) = len(self.original.outputs), self.size
        several = f"the mask is taken from {shown(seen.name)} of {count} outputs (--output-name)"
        smaller = f"one value for {seen.stride:g} pixels a side: enlarged to {height}x{width} inside the graph"
        return tuple(note for note, is_so in ((several, count > 1), (smaller, seen.stride != 1)) if is_so)
