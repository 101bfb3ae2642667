"""CVAT for images 1.1: `annotations.xml` with polygons, boxes and masks, and `images/`.

Class 0 is the background, unless a label is called so; the labels follow in the order of the file. Shapes are painted
by their `z_order`, then in their order; polygons and boxes are filled as pycocotools fills them, as CVAT's own export
of masks does. An image whose `subset` is called val or validation validates.
"""

from collections.abc import Sequence
from pathlib import Path

from segdeploy import palettes
from segdeploy.data.dataset import Classes, Dataset, Picture
from segdeploy.data.layouts import _cvat_xml, folders
from segdeploy.data.layouts._documents import located, require_few
from segdeploy.data.layouts._files import divided, lacking
from segdeploy.data.readings import Colour, Painted
from segdeploy.errors import InvalidFileError

NAME = "cvat"
DOCUMENT = "annotations.xml"
BACKGROUND = "background"


def recognises(root: Path) -> bool:
    return (root / DOCUMENT).is_file()


def open_folder(root: Path) -> Dataset:
    path = root / DOCUMENT
    if not path.is_file():
        raise lacking(root, NAME, DOCUMENT)
    found = _cvat_xml.read(path)
    if not found.images:
        raise lacking(root, NAME, f"images in {DOCUMENT}")
    classes = _classes(found.labels, path)
    parts: dict[bool, list[Picture]] = {True: [], False: []}
    for image in found.images:
        places = [root / "images" / image.subset, root / "images", root]
        picture = Picture(located(image.name, places, path), path, _reading(image, classes, path))
        parts[image.subset.lower() in folders.VAL].append(picture)
    return divided(root, parts[False], parts[True], classes=classes)


def _classes(labels: Sequence[_cvat_xml.Label], path: Path) -> Classes:
    colours: dict[str, Colour | None] = {BACKGROUND: (0, 0, 0)}
    colours |= {label.name: label.colour for label in labels}
    require_few(len(colours), path)
    spare = palettes.default_colours(len(colours))
    found = tuple(colour or spare[index] for index, colour in enumerate(colours.values()))
    return Classes(tuple(colours), found, source=DOCUMENT)


def _reading(image: _cvat_xml.LabelledImage, classes: Classes, path: Path) -> Painted:
    shapes = sorted(image.shapes, key=lambda shape: shape.z_order)
    if strange := [shape.label for shape in shapes if shape.label not in classes.names]:
        raise InvalidFileError(f"{path} has a shape of {strange[0]!r}, which it names no label.", "Export it again.")
    painted = tuple((classes.names.index(shape.label), shape.shape) for shape in shapes)
    return Painted(image.height, image.width, 0, painted)
