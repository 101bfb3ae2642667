"""What is known of the files of a labelled folder: read once, and remembered while they stay what they are."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np
from PIL import ImageFile

from segdeploy import artifact, images, typed_json
from segdeploy._version import __version__
from segdeploy.data import _threads
from segdeploy.data.dataset import Dataset
from segdeploy.errors import SegdeployError
from segdeploy.progress import Progress, silent

YOUNG_NS = 2_000_000_000  # a file that changed so lately may change again within one tick of the clock
_ON_ITS_SIDE = {5, 6, 7, 8}  # EXIF orientations
_EXIF_OF_PNG = (b"eXIf", b"Raw profile type exif", b"tiff:Orientation")


class Size(NamedTuple):
    """Pixels of an upright image, and the EXIF orientation (1 to 8) that it is turned by."""

    height: int
    width: int
    orientation: int


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """What was read from a file. `pixels`: how many of each value a mask has; `refused`: why it cannot be read."""

    size: Size | None
    pixels: tuple[tuple[int, int], ...] = ()
    refused: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Folder:
    """Images and masks by their paths."""

    photos: Mapping[Path, Facts]
    masks: Mapping[Path, Facts]


def of(data: Dataset, progress: Progress = silent) -> Folder:
    """Everything about the pictures of a folder; each mask is decoded, of each image the head alone."""
    photos = list(dict.fromkeys(picture.image for picture in data.pictures))
    masks = list(dict.fromkeys(picture.label for picture in data.pictures))
    memory = _Memory(data.root)
    with progress(f"Checking {data.root.name}", len(photos) + len(masks)) as done:
        found = Folder(memory.facts(photos, _photo, done), memory.facts(masks, _mask, done))
    memory.keep()
    return found


def size(path: Path) -> Size:
    """The size of an upright image; pixels are decoded only where nothing else tells. Raise as `images.read` does."""
    return images.looked_at(path, _size)


def _size(image: ImageFile.ImageFile, file: IO[bytes]) -> Size:
    if image.format == "ICO":
        image.load()  # what it says of its size may be wrong
    file.seek(0)
    content = file.read() if image.format == "PNG" else b""
    is_upright = image.format == "TIFF" or (content and not any(mark in content for mark in _EXIF_OF_PNG))
    orientation = 1 if is_upright else images.orientation(image)  # of a PNG it may stand behind the pixels
    height, width = image.size if orientation in _ON_ITS_SIDE else image.size[::-1]
    return Size(height, width, orientation)


def _photo(path: Path) -> Facts:
    try:
        return Facts(size(path))
    except SegdeployError as error:
        return Facts(None, refused=str(error))


def _mask(path: Path) -> Facts:
    try:
        counts = np.bincount(images.read_mask(path).ravel())
        return Facts(size(path), tuple((int(value), int(counts[value])) for value in np.flatnonzero(counts)))
    except SegdeployError as error:
        return Facts(None, refused=str(error))


# What is remembered

_Read = Callable[[Path], Facts]
Stamp = tuple[int, int, int, int]  # size, inode, and when content and entry changed: nobody can set the last one


@dataclasses.dataclass(frozen=True, slots=True)
class _Remembered:
    stamp: Stamp
    facts: Facts


@dataclasses.dataclass(frozen=True, slots=True)
class _Document:
    """The file of a folder in the user's cache."""

    schema: Literal[1]
    version: str
    files: Mapping[str, _Remembered]


class _Memory:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._path: Path | None = None
        self._known: Mapping[str, _Remembered] = {}
        self._kept: dict[str, _Remembered] = {}
        with contextlib.suppress(SegdeployError, OSError):
            name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()
            self._path = artifact.cache_folder() / "labels" / f"{name[:32]}.json"
            where = str(self._path)
            document = typed_json.parse(self._path.read_bytes(), where=where, remedy="")
            found = typed_json.convert(document, _Document, where=where, remedy="", partial=True)
            self._known = found.files if found.version == __version__ else {}

    def facts(self, files: Sequence[Path], read: _Read, done: Callable[[], None]) -> dict[Path, Facts]:
        found = {}
        for file, facts in _threads.each(functools.partial(self._one, read), files):
            found[file] = facts
            done()
        return found

    def _one(self, read: _Read, file: Path) -> Facts:
        key, stamp = f"{read.__name__} {os.path.relpath(file, self._root)}", _stamp(file)
        known = self._known.get(key)
        facts = known.facts if known is not None and known.stamp == stamp else read(file)
        if stamp is not None and stamp[3] < time.time_ns() - YOUNG_NS:
            self._kept[key] = _Remembered(stamp, facts)
        return facts

    def keep(self) -> None:
        """Where nothing can be kept, the next command reads the folder again."""
        if self._path is None or self._kept == self._known:
            return
        with contextlib.suppress(SegdeployError):
            document = json.dumps(typed_json.to_builtins(_Document(1, __version__, self._kept)))
            artifact.write_atomically(self._path, document.encode())


def _stamp(file: Path) -> Stamp | None:
    try:
        facts = file.stat()
    except OSError:
        return None
    return facts.st_size, facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns
