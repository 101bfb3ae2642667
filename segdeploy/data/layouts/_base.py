"""What a file in `layouts/` defines: how one kind of labelled folder is laid out."""

import dataclasses
from pathlib import Path
from typing import Protocol

from segdeploy.data.dataset import Dataset

Colour = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Classes:
    """Class names and their RGB colours, by class index. `named`: the folder says them; else they are numbers."""

    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    named: bool = True


class Layout(Protocol):
    """The masks of every layout are index PNGs, as `segdeploy.images.read_mask` reads them."""

    def recognises(self, root: Path) -> bool:
        """Whether a folder looks like this layout."""

    def open_folder(self, root: Path) -> Dataset:
        """The pictures that train and those that validate. Raise SegdeployError where the folder is not whole."""

    def classes_of(self, data: Dataset, *, ignore_index: int) -> Classes:
        """Names and colours: what the folder says, else some of our own."""
