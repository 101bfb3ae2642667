"""What a file in `layouts/` defines: how one kind of labelled folder is laid out."""

from pathlib import Path
from typing import Protocol

from segdeploy.data.dataset import Dataset


class Layout(Protocol):
    """How the pictures of a folder are found, which of them validate, how masks are read, what classes are called.

    It may also define PUBLISHED_VALUES, where it is that of one data set: by the name of each class its value in the
    masks that are published.
    """

    def recognises(self, root: Path) -> bool:
        """Whether a folder looks like this layout and like no other: from the names of some files alone."""

    def open_folder(self, root: Path) -> Dataset:
        """The pictures that train and those that validate. Raise SegdeployError where the folder is not whole."""
