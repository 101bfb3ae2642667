"""Pictures with their masks."""

import dataclasses
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdeploy import images
from segdeploy.errors import InvalidFileError, InvalidRequestError


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """An image, with its mask where there is one."""

    image: Path
    mask: Path | None

    def truth(self, *, classes: int, ignore_index: int) -> NDArray[np.uint8] | None:
        """(H, W) class indices, each below `classes` or equal to `ignore_index`; None without a mask."""
        return None if self.mask is None else read_truth(self.mask, classes=classes, ignore_index=ignore_index)

    @property
    def label(self) -> Path:
        """The mask. Raise InvalidRequestError where there is none."""
        if self.mask is None:
            raise InvalidRequestError(f"{self.image} has no mask.", "Bring one, or leave the image out of the lists.")
        return self.mask


@dataclasses.dataclass(frozen=True, slots=True)
class Dataset:
    """A labelled folder, divided: every picture has a mask. `has_val_list`: the folder says itself what validates."""

    root: Path
    train: tuple[Picture, ...]
    val: tuple[Picture, ...]
    has_val_list: bool = False


def image_files(root: Path) -> list[Path]:
    """The images of a folder's `images/`, in the order of their names."""
    if not root.is_dir():
        raise InvalidRequestError(f"there is no folder {root}.", "Give a folder with images/ and masks/.")
    folder = root / "images"
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in images.EXTENSIONS)
    if not found:
        raise InvalidRequestError(f"{folder} is missing or has no images.", "Give a folder with images/ and masks/.")
    return found


def read_truth(mask: Path, *, classes: int, ignore_index: int) -> NDArray[np.uint8]:
    """(H, W) class indices, each below `classes` or equal to `ignore_index`."""
    truth = images.read_mask(mask)
    strange = np.setdiff1d(np.unique(truth), [*range(classes), ignore_index])
    if strange.size:
        raise InvalidFileError(
            f"{mask} has class {strange[0]}; the network has {classes} classes and ignores {ignore_index}.",
            "Give masks with the network's own class indices, or name the index to ignore.",
        )
    return truth


def read_list(path: Path) -> list[str]:
    """The lines of a list of files; names are bytes, whatever their encoding."""
    lines = os.fsdecode(path.read_bytes()).removeprefix("\ufeff").split("\n")
    return [line.strip() for line in lines if line.strip()]
