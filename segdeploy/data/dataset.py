"""Pictures with their masks."""

import codecs
import dataclasses
import os
import sys
import unicodedata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdeploy import images
from segdeploy.data.readings import INDICES, Colour, MaskReading
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.origin import ValidationFolder

_LEFT_BY_SYSTEMS = {"thumbs.db", "desktop.ini", "__macosx"}
_UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """An image, with the file that holds its mask where there is one, and how the mask is read from it."""

    image: Path
    mask: Path | None
    reading: MaskReading = INDICES

    def truth(self, *, classes: int, ignore_index: int) -> NDArray[np.uint8] | None:
        """(H, W) class indices, each below `classes` or equal to `ignore_index`; None without a mask."""
        return None if self.mask is None else self.required_truth(classes=classes, ignore_index=ignore_index)

    def required_truth(self, *, classes: int, ignore_index: int) -> NDArray[np.uint8]:
        """As `truth`. Raise InvalidRequestError where there is no mask."""
        return read_truth(self.label, classes=classes, ignore_index=ignore_index, reading=self.reading)

    @property
    def label(self) -> Path:
        """The file of the mask. Raise InvalidRequestError where there is none."""
        if self.mask is None:
            raise InvalidRequestError(f"{self.image} has no mask.", "Bring one, or leave the image out of the lists.")
        return self.mask

    @property
    def mask_sha256(self) -> str | None:
        """Of all that the mask is made from; None without one."""
        return None if self.mask is None else self.reading.sha256(self.mask)


@dataclasses.dataclass(frozen=True, slots=True)
class Classes:
    """Class names and their RGB colours, by class index. `named`: the folder says them; else they are numbers.

    `source`: what names them, as errors call it.
    """

    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    named: bool = True
    source: str = "classes.csv"


@dataclasses.dataclass(frozen=True, slots=True)
class Dataset:
    """A labelled folder, divided: every picture has a mask. `has_val_list`: the folder says itself what validates.

    `unlisted`: how many images take no part. `strays`: files that are called like a mask and are no image. `classes`:
    what the folder or its kind says of them, None where they are numbers. `layout`: the name of how it is laid out.
    """

    root: Path
    train: tuple[Picture, ...]
    val: tuple[Picture, ...]
    has_val_list: bool = False
    unlisted: int = 0
    strays: tuple[Path, ...] = ()
    classes: Classes | None = None
    layout: str = "plain"

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Those that train, then those that validate."""
        return (*self.train, *self.val)


def remembered_folder(data: Dataset, beside: Path) -> ValidationFolder | None:
    """The folder, where its layout is needed to read its masks again; `beside`: what its path is relative to."""
    if all(each.reading == INDICES for each in data.pictures):
        return None
    return ValidationFolder(path=os.path.relpath(data.root, beside), layout=data.layout)


@dataclasses.dataclass(frozen=True, slots=True)
class DataFolder:
    """A folder of images, labelled or not. `layout`: how it is laid out; where it is None, that is recognised."""

    path: Path
    layout: str | None = None

    @classmethod
    def of(cls, given: "DataFolder | str | os.PathLike[str]") -> "DataFolder":
        """A folder that may be named by its path alone."""
        return given if isinstance(given, DataFolder) else cls(Path(given))


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden (`.DS_Store`, `._a.png`), or left by a system: `Thumbs.db`, `__MACOSX`."""
    return name.startswith(".") or name.lower() in _LEFT_BY_SYSTEMS


def same_name(name: str) -> str:
    """One spelling for names that differ only in Unicode normalisation: macOS writes an accent apart."""
    return unicodedata.normalize("NFC", name)


def files_in(folder: Path) -> list[Path]:
    """The files of a folder but litter, in the order of their names."""
    found = (path for path in folder.glob("*") if not is_litter(path.name) and path.is_file())
    return sorted(found, key=lambda path: (same_name(path.name), path.name))


def is_image(path: Path) -> bool:
    """By the ending of its name."""
    return path.suffix.lower() in images.EXTENSIONS


def image_files(root: Path) -> list[Path]:
    """The images of a folder's `images/`, in the order of their names."""
    if not root.is_dir():
        raise InvalidRequestError(f"there is no folder {root}.", "Give a folder with images/ and masks/.")
    folder = root / "images"
    found = [path for path in files_in(folder) if is_image(path)]
    if not found:
        raise InvalidRequestError(f"{folder} is missing or has no images.", "Give a folder with images/ and masks/.")
    return found


def read_truth(mask: Path, *, classes: int, ignore_index: int, reading: MaskReading = INDICES) -> NDArray[np.uint8]:
    """(H, W) class indices, each below `classes` or equal to `ignore_index`."""
    truth = reading.class_map(mask, ignore_index=ignore_index)
    strange = np.setdiff1d(np.unique(truth), [*range(classes), ignore_index])
    if strange.size:
        raise InvalidFileError(
            f"{mask} has class {strange[0]}; the network has {classes} classes and ignores {ignore_index}.",
            "Give masks with the network's own class indices, or name the index to ignore.",
        )
    return truth


def read_list(path: Path) -> list[str]:
    """The lines of a list of files, in UTF-16 where it is that; else names are bytes, whatever their encoding."""
    text = read_text(path, sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())
    return [line.strip() for line in text.split("\n") if line.strip()]


def read_text(path: Path, encoding: str = "utf-8", errors: str = "strict") -> str:
    """A text that some editor wrote: UTF-16, as Windows writes it, or `encoding`, with or without a mark in front.

    Raise InvalidFileError where it is neither.
    """
    content = path.read_bytes()
    try:
        if content.startswith(_UTF_16_MARKS):
            return content.decode("utf-16")
        if b"\0" in content:  # no name holds it; every second byte of Latin letters in UTF-16 is one
            return content.decode("utf-16-le" if b"\0" in content[1::2] else "utf-16-be")
        return content.decode(encoding, errors).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InvalidFileError(f"{path} is no text: {error.reason}.", "Save it as UTF-8.") from error
