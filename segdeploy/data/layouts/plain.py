"""`images/`, `masks/`, optionally `train.txt`, `val.txt` and `classes.csv`.

A mask has its image's stem and is a PNG of class indices. The lists name images, one a line: by file name, stem or
path, alone or with their mask in a second column. `classes.csv`: `segdeploy.data.class_table`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from segdeploy import palettes
from segdeploy.data import _facts, class_table, dataset
from segdeploy.data.dataset import Dataset, Picture, same_name
from segdeploy.data.layouts._base import Classes
from segdeploy.errors import InvalidFileError, InvalidRequestError

EACH_TENTH = 10
SEPARATORS = "\t,; "  # of two columns; a name may hold all but the first


def recognises(root: Path) -> bool:
    return (root / "masks").is_dir()


def open_folder(root: Path) -> Dataset:
    """What one list leaves over is the other; without lists, every tenth image validates and the others train."""
    photos, masks = _Files(root / "images", dataset.image_files(root)), _masks(root)
    train, val = (_listed(root / name, photos, masks) for name in ("train.txt", "val.txt"))
    every: list[Entry] = [(photo, None) for photo in photos.files]
    if val is None:
        val = every[::EACH_TENTH] if train is None else _others(every, train)
    if not val:
        raise InvalidRequestError(
            f"{root / 'train.txt'} names every image: none is left to validate.", "Name some in val.txt instead."
        )
    if train is None:
        train = _others(every, val)
    return Dataset(
        root,
        train=_pairs(train, masks),
        val=_pairs(val, masks),
        has_val_list=any((root / name).is_file() for name in ("train.txt", "val.txt")),
        unlisted=len(_others(_others(every, train), val)),
        strays=tuple(masks.strays(photos)),
    )


def classes_of(data: Dataset, *, ignore_index: int) -> Classes:
    """Names and colours from `classes.csv`; else class_0 ... for the highest index in the masks that can be read."""
    table = data.root / class_table.NAME
    if table.is_file():
        return class_table.read(table)
    values = {value for mask in _facts.of(data).masks.values() for value, _ in mask.pixels}
    highest = max(values - {ignore_index}, default=0)
    if highest == 0:
        raise InvalidRequestError(
            f"the masks of {data.root} hold one class, 0, and {ignore_index}, which is ignored.",
            "Write the second class as 1 (0/255 masks: divide by 255), or name the classes in classes.csv.",
        )
    names = tuple(f"class_{index}" for index in range(highest + 1))
    return Classes(names, tuple(palettes.default_colours(len(names))), named=False)


# What a name in a list means

Entry = tuple[Path, Path | None]  # an image, and its mask where the list says it


@dataclasses.dataclass(frozen=True, slots=True)
class _Files:
    """The images of a folder, found by name, stem or path."""

    folder: Path
    files: Sequence[Path]
    by_name: dict[str, list[Path]] = dataclasses.field(default_factory=dict)
    by_stem: dict[str, list[Path]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for file in self.files:
            self.by_name.setdefault(same_name(file.name), []).append(file)
            self.by_stem.setdefault(same_name(file.stem), []).append(file)

    def find(self, text: str) -> Path | None:
        """The file that a word of a list names. Raise InvalidFileError where it may be two."""
        name = PurePosixPath(text.replace("\\", "/")).name
        same = self.by_name.get(same_name(name)) or self.by_stem.get(same_name(name)) or []
        exact = [file for file in same if file.name == name]
        found = exact or same
        if len(found) > 1:
            raise InvalidFileError(
                f"{text} may be {found[0].name} or {found[1].name} in {self.folder}.", "Name the file with its ending."
            )
        return found[0] if found and not self._is_elsewhere(text, found[0]) else None

    def _is_elsewhere(self, text: str, found: Path) -> bool:
        """Whether a path leads to another file than the one of that name here."""
        named = self.folder.parent / text
        return "/" in text and named.is_file() and not named.samefile(found)

    def of(self, photo: Path) -> Path | None:
        """The mask of an image. Raise InvalidFileError where it may be two."""
        found = self.by_stem.get(same_name(photo.stem), [])
        if len(found) > 1:
            names = " and ".join(file.name for file in found)
            raise InvalidFileError(
                f"{self.folder} has {names} for {photo.name}.", "Take all but one away: one image has one mask."
            )
        return found[0] if found else None

    def strays(self, photos: "_Files") -> list[Path]:
        """Files that are called like an image's mask and are none by their endings."""
        others = (file for file in dataset.files_in(self.folder) if not dataset.is_image(file))
        return [file for file in others if same_name(file.stem) in photos.by_stem]


def _masks(root: Path) -> _Files:
    masks = _Files(root / "masks", [path for path in dataset.files_in(root / "masks") if dataset.is_image(path)])
    if not masks.files:
        raise InvalidRequestError(
            f"{root} has no labels: masks/ is missing or empty.", "Put an index PNG for every image into masks/."
        )
    return masks


def _listed(path: Path, photos: _Files, masks: _Files) -> list[Entry] | None:
    """What a list names; None where there is no list. Comments begin with `#`."""
    if not path.is_file():
        return None
    found = {line: _entry(line, photos, masks) for line in dataset.read_list(path)}
    missing = [line for line, entry in found.items() if entry is None and not line.startswith("#")]
    if missing:
        raise InvalidRequestError(
            f"{path} names {len(missing)} images that are not in images/, the first is {missing[0]}.",
            "Correct the list, or bring the images.",
        )
    entries = [entry for line in dataset.read_list(path) if (entry := found[line]) is not None]
    if not entries:
        raise InvalidRequestError(f"{path} is empty.", "Name images in it, or take it away.")
    return entries


def _entry(line: str, photos: _Files, masks: _Files) -> Entry | None:
    if (photo := photos.find(line)) is not None:
        return photo, None
    for place in (place for place, letter in enumerate(line) if letter in SEPARATORS):
        photo, mask = photos.find(line[:place].strip()), masks.find(line[place + 1 :].strip())
        if photo is not None and mask is not None:
            return photo, mask
    return None


def _others(every: Sequence[Entry], taken: Sequence[Entry]) -> list[Entry]:
    listed = {photo for photo, _ in taken}
    return [entry for entry in every if entry[0] not in listed]


def _pairs(entries: Sequence[Entry], masks: _Files) -> tuple[Picture, ...]:
    pairs = [Picture(photo, mask or masks.of(photo)) for photo, mask in entries]
    without = [pair.image for pair in pairs if pair.mask is None]
    if without:
        raise InvalidRequestError(
            f"{len(without)} images have no mask, the first is {without[0].name}.",
            f"Put masks/{without[0].stem}.png there, or leave the image out of the lists.",
        )
    return tuple(pairs)
