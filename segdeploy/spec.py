"""What a trained network promises, in one value that travels inside every file we write."""

import dataclasses
import json
import math
import unicodedata
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal, Self, TypeAlias, get_args

from segdeploy import typed_json
from segdeploy.errors import InvalidRequestError
from segdeploy.names import require_name, shown

SPEC_KEY = "segdeploy.spec"  # where a graph carries its Spec
WEIGHTS_KEY = "segdeploy.weights_sha256"  # and of which checkpoint it is
MAX_CLASSES = 256  # a class map is uint8
MAX_PIXELS = 8192 * 8192  # of a network's input: above it, memory runs out before anything can be said
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB values in 0..1
GREY = (114, 114, 114)  # around a letterboxed photograph, as detectors are trained with it
_CHANNELS = 3
_USUAL = {"name": "", "fit": "stretch", "fill": GREY, "overlap": 0}  # what files leave out
_CONTROLS = {"Cc", "Zl", "Zp"}  # Unicode's control characters, and what ends a line or a paragraph
_REMEDY = "Take a file that this version of segdeploy wrote."


Fit: TypeAlias = Literal["stretch", "letterbox", "tile", "auto"]
FITS: tuple[Fit, ...] = get_args(Fit)


class Precision(StrEnum):
    """The type a graph computes in."""

    FP32 = "fp32"
    FP16 = "fp16"
    FP8 = "fp8"
    INT8 = "int8"


@dataclasses.dataclass(frozen=True, slots=True)
class Spec:
    """A network's contract: what rebuilds it, what goes in, what comes out.

    `height` and `width` are the network's input in pixels, always RGB; `mean` and `std` are of values in 0..1.
    `margin` pixels on each side are context that valid convolutions consume: the class map is that much smaller.
    `variant` holds the keyword arguments of the model file's `build`.
    `fit`: how a photograph of another size meets the network. `stretch`: resized to its size. `letterbox`: resized as
    it is, with `fill` (RGB) around it. `tile`: not resized, in tiles that share at least 2 `overlap` pixels, of which
    each decides up to the middle. `auto`: stretched, and tiled above `MAX_PIXELS`.
    `name` is what the network is called: its files begin with it and `--model` takes it. Left out, it is the model's.
    `model` and `name` are plain names; the name of a class is any text of one line.
    """

    model: str
    variant: Mapping[str, str | int | float | bool]
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    height: int
    width: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    ignore_index: int = 255
    margin: int = 0
    output: Literal["class_map", "logits"] = "class_map"
    name: str = ""
    fit: Fit = "stretch"
    fill: tuple[int, int, int] = GREY
    overlap: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.model)  # the dataclass is frozen
        require_name(self.model, "the network")
        require_name(self.name, "the network")
        for broken, what, remedy in _problems(self):
            if broken:
                raise InvalidRequestError(what, remedy)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True)

    def to_dict(self) -> dict[str, Any]:
        """The JSON value that stands in files, without what is as usual: the model's name, photographs that stretch."""
        usual = {**_USUAL, "name": self.model}
        fields = typed_json.to_builtins(self)
        return {key: value for key, value in fields.items() if key not in usual or value != usual[key]}

    @classmethod
    def from_json(cls, text: str, *, where: str = "the Spec") -> Self:
        """Raise InvalidFileError, naming `where` and the field, for anything but a Spec."""
        return cls.from_dict(typed_json.parse(text, where=where, remedy=_REMEDY), where=where)

    @classmethod
    def from_dict(cls, fields: object, *, where: str = "the Spec") -> Self:
        every = {**_USUAL, **fields} if isinstance(fields, dict) else fields
        return typed_json.convert(every, cls, where=where, remedy=_REMEDY)


def _problems(spec: Spec) -> list[tuple[bool, str, str]]:
    return [*_wrong_classes(spec), *_wrong_input(spec), *_wrong_fit(spec)]


def _wrong_classes(spec: Spec) -> list[tuple[bool, str, str]]:
    count = len(spec.classes)
    return [
        (
            not 1 <= count <= MAX_CLASSES,
            f"{count} classes; a class map holds 1 to {MAX_CLASSES}.",
            "Merge classes before training: masks are 8-bit.",
        ),
        (
            len(set(spec.classes)) != count,
            "two classes have the same name.",
            "Name each class once: scores are reported by name.",
        ),
        (
            bool(broken := [name for name in spec.classes if _CONTROLS.intersection(map(unicodedata.category, name))]),
            f"the class {', '.join(map(shown, broken[:1]))} has a control character in its name.",
            "Name classes in text of one line.",
        ),
        (
            len(spec.colours) != count,
            f"{count} classes but {len(spec.colours)} colours.",
            "Give one colour for each class.",
        ),
        (
            not all(0 <= value <= MAX_CLASSES - 1 for colour in spec.colours for value in colour),
            "a colour has a value outside 0..255.",
            "Give colours as three numbers in 0..255.",
        ),
        (
            not 0 <= spec.ignore_index < MAX_CLASSES,
            f"the index to ignore is {spec.ignore_index}.",
            "Give a value that a mask can hold: 0..255.",
        ),
    ]


def _wrong_input(spec: Spec) -> list[tuple[bool, str, str]]:
    return [
        (
            spec.height < 1 or spec.width < 1,
            f"the network size {spec.height}x{spec.width} is empty.",
            "Give HEIGHTxWIDTH in pixels, for example 256x256.",
        ),
        (
            spec.height * spec.width > MAX_PIXELS,
            f"the network size {spec.height}x{spec.width} is above {MAX_PIXELS:,} pixels.",
            "Give a smaller size: photographs are stretched to it.",
        ),
        (
            len(spec.mean) != _CHANNELS or not all(math.isfinite(value) for value in spec.mean),
            f"the means {spec.mean} are not three numbers.",
            "Give the mean of values in 0..1, for example 0.485,0.456,0.406.",
        ),
        (
            len(spec.std) != _CHANNELS or not all(0 < value < math.inf for value in spec.std),
            f"the standard deviations {spec.std} are not three numbers above 0.",
            "Give the deviation of values in 0..1, for example 0.229,0.224,0.225.",
        ),
        (
            not all(math.isfinite(value) for value in spec.variant.values() if isinstance(value, float)),
            f"an option of the network is not a number: {dict(spec.variant)}.",
            "Give finite numbers: JSON, in which a Spec travels, has no others.",
        ),
        (
            spec.output not in {"class_map", "logits"},
            f"the output {spec.output!r} is unknown.",
            "Choose class_map or logits.",
        ),
    ]


def _wrong_fit(spec: Spec) -> list[tuple[bool, str, str]]:
    side = min(spec.height, spec.width) - 2 * spec.margin
    return [
        (spec.fit not in FITS, f"there is no fit {spec.fit!r}.", f"Choose {', '.join(FITS)}."),
        (
            len(spec.fill) != _CHANNELS or not all(0 <= value < MAX_CLASSES for value in spec.fill),
            f"the colour {spec.fill} around a letterboxed photograph is none.",
            "Give three numbers in 0..255, for example 114,114,114.",
        ),
        (
            spec.overlap < 0 or (spec.overlap > 0 and 2 * spec.overlap >= side),
            f"an overlap of {spec.overlap} pixels on each side leaves nothing of a tile of {side}.",
            f"Give 0 to {max(0, (side - 1) // 2)}.",
        ),
    ]
