"""Reads CVAT's XML as it streams by: no document type, no entities, nothing but labels, images and shapes."""

import dataclasses
import re
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

from segdeploy.data.layouts._documents import require_bounded
from segdeploy.data.readings import Colour
from segdeploy.data.shapes import Polygons, Runs, Shape
from segdeploy.errors import InvalidFileError

IGNORED = {"tag", "attribute"}  # of an image and of a shape: they cover nothing
Attributes = dict[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Label:
    name: str
    colour: Colour | None


@dataclasses.dataclass(frozen=True, slots=True)
class LabelledShape:
    label: str
    z_order: int
    shape: Shape


@dataclasses.dataclass(slots=True)
class LabelledImage:
    """`subset`: of the project that was exported, empty for a task."""

    name: str
    subset: str
    height: int
    width: int
    shapes: list[LabelledShape] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class Document:
    labels: list[Label] = dataclasses.field(default_factory=list)
    images: list[LabelledImage] = dataclasses.field(default_factory=list)


def read(path: Path) -> Document:
    """The labels and images of a file. Raise InvalidFileError where it is broken, or holds what cannot be painted."""
    require_bounded(path)
    reader = _Reader(path)
    try:
        with path.open("rb") as file:
            reader.parser.ParseFile(file)
    except (expat.ExpatError, KeyError, ValueError) as error:
        reason = f"the attribute {error} is missing" if isinstance(error, KeyError) else str(error)
        raise InvalidFileError(f"{path} cannot be read as annotations: {reason}.", "Export it again.") from error
    return reader.found


class _Reader:
    def __init__(self, path: Path) -> None:
        self.found = Document()
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._refuse_document_type
        self.parser.StartElementHandler, self.parser.EndElementHandler = self._start, self._end
        self.parser.CharacterDataHandler = self._hear
        self._path = path
        self._open: list[str] = []
        self._text = ""
        self._label: Attributes = {}
        self._image: LabelledImage | None = None

    def _refuse_document_type(self, *_: object) -> NoReturn:
        raise ValueError("it declares a document type, which CVAT does not")

    def _hear(self, text: str) -> None:
        self._text += text if "label" in self._open else ""

    def _start(self, tag: str, attributes: Attributes) -> None:
        self._open.append(tag)
        self._text = ""
        if tag == "track":
            raise ValueError("it holds the tracks of a video; export it as CVAT for images")
        if tag == "image":
            size = int(attributes["height"]), int(attributes["width"])
            self._image = LabelledImage(attributes["name"], attributes.get("subset", ""), *size)
        elif self._image is not None and self._open[-2] == "image" and tag not in IGNORED:
            shape = LabelledShape(attributes["label"], int(attributes.get("z_order", "0")), _shape(tag, attributes))
            self._image.shapes.append(shape)

    def _end(self, tag: str) -> None:
        self._open.pop()
        if tag == "image" and self._image is not None:
            self.found.images.append(self._image)
            self._image = None
        elif tag in {"name", "color"} and self._open[-1:] == ["label"]:
            self._label[tag] = self._text.strip()
        elif tag == "label" and self._open[-1:] == ["labels"]:
            self.found.labels.append(Label(self._label["name"], _colour(self._label.get("color", ""))))
            self._label = {}


def _shape(tag: str, attributes: Attributes) -> Shape:
    if tag == "polygon":
        return Polygons((tuple(float(number) for number in re.split("[,;]", attributes["points"])),))
    if tag == "box" and not float(attributes.get("rotation", "0")):
        left, top, right, bottom = (float(attributes[side]) for side in ("xtl", "ytl", "xbr", "ybr"))
        return Polygons(((left, top, right, top, right, bottom, left, bottom),))
    if tag == "mask":
        counts = tuple(int(number) for number in attributes["rle"].split(","))
        top, left, height, width = (int(attributes[side]) for side in ("top", "left", "height", "width"))
        return Runs(counts, top, left, height, width, by_column=False)
    turned = "a turned box" if tag == "box" else f"a shape of the kind {tag!r}"
    raise ValueError(f"it holds {turned}, which is not painted here; draw it as a polygon or a mask")


def _colour(text: str) -> Colour | None:
    words = re.fullmatch(r"#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})", text)
    return None if words is None else (int(words[1], 16), int(words[2], 16), int(words[3], 16))
