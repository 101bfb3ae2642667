"""Lists of images: one a line, by file name, stem or path, alone or with their mask in a second column."""

from collections.abc import Sequence
from pathlib import Path

from segdeploy.data import dataset
from segdeploy.data.layouts._files import Files
from segdeploy.errors import InvalidRequestError

SEPARATORS = "\t,; "  # of two columns; a name may hold all but the first
Entry = tuple[Path, Path | None]  # an image, and its mask where the list says it


def entries(path: Path, photos: Files, masks: Files) -> list[Entry] | None:
    """What a list names; None where there is no list. Comments begin with `#`."""
    if not path.is_file():
        return None
    found = {line: _entry(line, photos, masks) for line in dataset.read_list(path)}
    missing = [line for line, entry in found.items() if entry is None and not line.startswith("#")]
    if missing:
        raise InvalidRequestError(
            f"{path} names {len(missing)} images that are not in {photos.folder.name}/, the first is {missing[0]}.",
            "Correct the list, or bring the images.",
        )
    entries = [entry for line in dataset.read_list(path) if (entry := found[line]) is not None]
    if not entries:
        raise InvalidRequestError(f"{path} is empty.", "Name images in it, or take it away.")
    return entries


def _entry(line: str, photos: Files, masks: Files) -> Entry | None:
    if (photo := photos.find(line)) is not None:
        return photo, None
    for place in (place for place, letter in enumerate(line) if letter in SEPARATORS):
        photo, mask = photos.find(line[:place].strip()), masks.find(line[place + 1 :].strip())
        if photo is not None and mask is not None:
            return photo, mask
    return None


def others(every: Sequence[Entry], taken: Sequence[Entry]) -> list[Entry]:
    listed = {photo for photo, _ in taken}
    return [entry for entry in every if entry[0] not in listed]
