"""CamVid as it was published: `701_StillsRaw_full/*.png` and `LabeledApproved_full/*_L.png`, masks in 32 colours.

The colours become SegNet's eleven classes by the customary merge (Sturgess et al., BMVC 2009). Sidewalk has two colours
in the copies that are about: 0,0,192, as published, and SegNet's 60,40,222; both count. `label_colors.txt` (lines
`r g b name`) says other colours for the same names. `train.txt` and `val.txt` may name images.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from segdeploy.data import dataset
from segdeploy.data.dataset import Dataset
from segdeploy.data.layouts import _lists as lists
from segdeploy.data.layouts import camvid
from segdeploy.data.layouts._files import Files, divided, images_of, lacking, paired, require_images
from segdeploy.data.readings import VOID, Colour, Colours
from segdeploy.errors import InvalidFileError

NAME = "camvid_original"
TABLE = "label_colors.txt"
SEGNET_SIDEWALK: Colour = (60, 40, 222)
PUBLISHED: Mapping[str, Colour] = {
    "Animal": (64, 128, 64),
    "Archway": (192, 0, 128),
    "Bicyclist": (0, 128, 192),
    "Bridge": (0, 128, 64),
    "Building": (128, 0, 0),
    "Car": (64, 0, 128),
    "CartLuggagePram": (64, 0, 192),
    "Child": (192, 128, 64),
    "Column_Pole": (192, 192, 128),
    "Fence": (64, 64, 128),
    "LaneMkgsDriv": (128, 0, 192),
    "LaneMkgsNonDriv": (192, 0, 64),
    "Misc_Text": (128, 128, 64),
    "MotorcycleScooter": (192, 0, 192),
    "OtherMoving": (128, 64, 64),
    "ParkingBlock": (64, 192, 128),
    "Pedestrian": (64, 64, 0),
    "Road": (128, 64, 128),
    "RoadShoulder": (128, 128, 192),
    "Sidewalk": (0, 0, 192),
    "SignSymbol": (192, 128, 128),
    "Sky": (128, 128, 128),
    "SUVPickupTruck": (64, 128, 192),
    "TrafficCone": (0, 0, 64),
    "TrafficLight": (0, 64, 64),
    "Train": (192, 64, 128),
    "Tree": (128, 128, 0),
    "Truck_Bus": (192, 128, 192),
    "Tunnel": (64, 0, 64),
    "VegetationMisc": (192, 192, 0),
    "Void": (0, 0, 0),
    "Wall": (64, 192, 0),
}
MERGED: Mapping[str, str] = {  # to SegNet's name; what has none is void
    **dict.fromkeys(("Tree", "VegetationMisc"), "Tree"),
    **dict.fromkeys(("Road", "RoadShoulder", "LaneMkgsDriv", "LaneMkgsNonDriv"), "Road"),
    **dict.fromkeys(("Sidewalk", "ParkingBlock"), "Pavement"),
    **dict.fromkeys(("SignSymbol", "TrafficLight", "Misc_Text"), "SignSymbol"),
    **dict.fromkeys(("Bicyclist", "MotorcycleScooter"), "Bicyclist"),
    **dict.fromkeys(("Car", "Truck_Bus", "SUVPickupTruck"), "Car"),
    **dict.fromkeys(("Building", "Wall"), "Building"),
    **{name: name for name in ("Sky", "Fence", "Pedestrian")},
    "Column_Pole": "Pole",
}


def recognises(root: Path) -> bool:
    return _folder(root, "701_StillsRaw") is not None and _folder(root, "LabeledApproved") is not None


def open_folder(root: Path) -> Dataset:
    stills, labels = _folder(root, "701_StillsRaw"), _folder(root, "LabeledApproved")
    if stills is None or labels is None:
        raise lacking(root, NAME, "701_StillsRaw_full/ with LabeledApproved_full/")
    photos, masks = require_images(stills, root, NAME), Files(labels, images_of(labels))
    reading = Colours(tuple(_classes_of_colours(root / TABLE).items()), "CamVid")
    chosen = [lists.entries(root / f"{part}.txt", photos, masks) for part in ("train", "val")]
    train, val = ([photo for photo, _ in each or []] for each in chosen)
    if not train:
        train = [photo for photo in photos.files if photo not in set(val)]
    parts = [paired(each, masks, suffix="_L", reading=reading) for each in (train, val)]
    unlisted = len(photos.files) - len({*train, *val})
    return divided(root, *parts, classes=camvid.CLASSES, unlisted=unlisted)


def _folder(root: Path, begin: str) -> Path | None:
    return next((path for path in sorted(root.glob(f"{begin}*")) if path.is_dir()), None)


def _classes_of_colours(table: Path) -> dict[Colour, int]:
    colours = _written(table) if table.is_file() else PUBLISHED
    found = {colour: _class_of(name) for name, colour in colours.items()}
    if found.setdefault(SEGNET_SIDEWALK, _class_of("Sidewalk")) != _class_of("Sidewalk"):
        raise InvalidFileError(f"{table} gives SegNet's colour of the sidewalk to another class.", "Correct the table.")
    return found


def _class_of(name: str) -> int:
    return camvid.CLASSES.names.index(MERGED[name]) if name in MERGED else VOID


def _written(table: Path) -> dict[str, Colour]:
    """Names and colours of `label_colors.txt`. Raise InvalidFileError for another name than CamVid's 32."""
    found: dict[str, Colour] = {}
    for line in filter(None, map(str.strip, dataset.read_text(table).splitlines())):
        words = re.fullmatch(r"(\d{1,3})\s+(\d{1,3})\s+(\d{1,3})\s+(\w+)", line)
        if words is None or words[4] not in PUBLISHED or max(map(int, words.groups()[:3])) > 255:  # noqa: PLR2004
            raise InvalidFileError(
                f"{table} has the line {line!r}, which names no class of CamVid.", "Write r g b and a name of CamVid's."
            )
        found[words[4]] = (int(words[1]), int(words[2]), int(words[3]))
    return found
