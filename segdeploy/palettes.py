"""Classes and colours of the data sets, and colours for a data set that brings none."""

import dataclasses
from collections.abc import Mapping
from typing import TypeAlias

Colour: TypeAlias = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Palette:
    """Class names and their RGB colours, by class index."""

    classes: tuple[str, ...]
    colours: tuple[Colour, ...]


def default_colours(count: int) -> tuple[Colour, ...]:
    """PASCAL VOC's colour of every index, continued past its 21 classes; 256 of them are distinct."""
    return tuple(_voc_colour(index) for index in range(count))


def _voc_colour(index: int) -> Colour:
    """Bits 0, 1, 2 of the index go to R, G, B, highest bit first; then the next three (VOCcode/VOClabelcolormap.m)."""

    def channel(first: int) -> int:
        return sum((index >> (first + 3 * place) & 1) << (7 - place) for place in range(8))

    return channel(0), channel(1), channel(2)


_CAMVID: Mapping[str, Colour] = {  # the order of SegNet's own labels (arXiv:1511.00561); Void, 11, is the ignored label
    "Sky": (128, 128, 128),
    "Building": (128, 0, 0),
    "Pole": (192, 192, 128),
    "Road": (128, 64, 128),
    "Pavement": (60, 40, 222),
    "Tree": (128, 128, 0),
    "SignSymbol": (192, 128, 128),
    "Fence": (64, 64, 128),
    "Car": (64, 0, 128),
    "Pedestrian": (64, 64, 0),
    "Bicyclist": (0, 128, 192),
}

_CITYSCAPES: Mapping[str, Colour] = {  # by trainId (cityscapesScripts helpers/labels.py)
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}

_VOC = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

_ADE20K = """
wall; building; sky; floor; tree; ceiling; road; bed; windowpane; grass; cabinet; sidewalk; person; earth;
door; table; mountain; plant; curtain; chair; car; water; painting; sofa; shelf; house; sea; mirror; rug;
field; armchair; seat; fence; desk; rock; wardrobe; lamp; bathtub; railing; cushion; base; box; column;
signboard; chest of drawers; counter; sand; sink; skyscraper; fireplace; refrigerator; grandstand; path;
stairs; runway; case; pool table; pillow; screen door; stairway; river; bridge; bookcase; blind; coffee table;
toilet; flower; book; hill; bench; countertop; stove; palm; kitchen island; computer; swivel chair; boat; bar;
arcade machine; hovel; bus; towel; light; truck; tower; chandelier; awning; streetlight; booth; television
receiver; airplane; dirt track; apparel; pole; land; bannister; escalator; ottoman; bottle; buffet; poster;
stage; van; ship; fountain; conveyer belt; canopy; washer; plaything; swimming pool; stool; barrel; basket;
waterfall; tent; bag; minibike; cradle; oven; ball; food; step; tank; trade name; microwave; pot; animal;
bicycle; lake; dishwasher; screen; blanket; sculpture; hood; sconce; vase; traffic light; tray; ashcan; fan;
pier; crt screen; plate; monitor; bulletin board; shower; radiator; glass; clock; flag
"""  # objectInfo150.txt of the scene-parsing challenge, by label - 1

CAMVID = Palette(tuple(_CAMVID), tuple(_CAMVID.values()))
CITYSCAPES = Palette(tuple(_CITYSCAPES), tuple(_CITYSCAPES.values()))
VOC = Palette(_VOC, default_colours(len(_VOC)))
ADE20K = Palette(tuple(name.strip() for name in _ADE20K.split(";")), default_colours(150))
_ROAD_MARKING: Mapping[str, Colour] = {"RoadMarking": (255, 69, 0)}  # SegNet's driving networks have it at index 3
_DRIVING = {**dict(list(_CAMVID.items())[:3]), **_ROAD_MARKING, **dict(list(_CAMVID.items())[3:])}
CAMVID_DRIVING = Palette(tuple(_DRIVING), tuple(_DRIVING.values()))


@dataclasses.dataclass(frozen=True, slots=True)
class Guess:
    """The data set that a number of classes suggests."""

    data: str
    palette: Palette


OF_COUNT: Mapping[int, Guess] = {
    11: Guess("CamVid", CAMVID),
    12: Guess("CamVid with road markings", CAMVID_DRIVING),
    19: Guess("Cityscapes", CITYSCAPES),
    21: Guess("PASCAL VOC", VOC),
    150: Guess("ADE20K", ADE20K),
}
