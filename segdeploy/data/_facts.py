"""What is known of the files of a labelled folder: read once, and remembered while they stay what they are."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from segdeploy import artifact, typed_json
from segdeploy._version import __version__
from segdeploy.data import _threads, sizes
from segdeploy.data.dataset import Dataset, Picture
from segdeploy.data.sizes import Size
from segdeploy.errors import SegdeployError
from segdeploy.progress import Progress, silent

Label = tuple[Path, str]  # the file of a mask, and how it is read from it
Key = TypeVar("Key")
YOUNG_NS = 2_000_000_000  # a file that changed so lately may change again within one tick of the clock


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """What was read from a file. `pixels`: how many of each value a mask has; `refused`: why it cannot be read."""

    size: Size | None
    pixels: tuple[tuple[int, int], ...] = ()
    refused: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Folder:
    """Images by their paths; masks by their files and by how they are read from them."""

    photos: Mapping[Path, Facts]
    masks: Mapping[Label, Facts]

    def of_mask(self, picture: Picture) -> Facts:
        return self.masks[label_of(picture)]


class _File(NamedTuple):
    """Something to be read: its file, what tells it from others in that file, and what reads it."""

    path: Path
    identity: str
    read: Callable[[], Facts]


def label_of(picture: Picture) -> Label:
    return picture.label, picture.reading.identity


def of(data: Dataset, *, ignore_index: int, progress: Progress = silent) -> Folder:
    """Everything about the pictures of a folder; each mask is decoded, of each image the head alone."""
    photos = {picture.image: _File(picture.image, "_photo", _photo_of(picture)) for picture in data.pictures}
    masks = {label_of(picture): _mask_file(picture, ignore_index) for picture in data.pictures}
    memory = _Memory(data.root)
    with progress(f"Checking {data.root.name}", len(photos) + len(masks)) as done:
        found = Folder(memory.facts(photos, done), memory.facts(masks, done))
    memory.keep()
    return found


def _mask_file(picture: Picture, ignore_index: int) -> _File:
    identity = f"_mask {picture.reading.identity}".rstrip()
    if picture.reading.identity:  # only there void becomes the ignored index
        identity = f"{identity} {ignore_index}"
    return _File(picture.label, identity, functools.partial(_mask, picture, ignore_index))


def _photo_of(picture: Picture) -> Callable[[], Facts]:
    return functools.partial(_photo, picture.image)


def _photo(path: Path) -> Facts:
    try:
        return Facts(sizes.size(path))
    except SegdeployError as error:
        return Facts(None, refused=str(error))


def _mask(picture: Picture, ignore_index: int) -> Facts:
    try:
        counts = np.bincount(picture.reading.class_map(picture.label, ignore_index=ignore_index).ravel())
        size = picture.reading.size(picture.label)
        return Facts(size, tuple((int(value), int(counts[value])) for value in np.flatnonzero(counts)))
    except SegdeployError as error:
        return Facts(None, refused=str(error))


# What is remembered

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

    def facts(self, files: Mapping[Key, _File], done: Callable[[], None]) -> dict[Key, Facts]:
        found = {}
        for key, facts in _threads.each(lambda key: self._one(files[key]), list(files)):
            found[key] = facts
            done()
        return found

    def _one(self, file: _File) -> Facts:
        name, stamp = f"{file.identity} {os.path.relpath(file.path, self._root)}", _stamp(file.path)
        known = self._known.get(name)
        facts = known.facts if known is not None and known.stamp == stamp else file.read()
        if stamp is not None and stamp[3] < time.time_ns() - YOUNG_NS:
            self._kept[name] = _Remembered(stamp, facts)
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
