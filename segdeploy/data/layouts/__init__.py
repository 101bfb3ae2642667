"""How labelled folders are laid out: one public file each, found by listing the folder."""

import importlib
import pkgutil
from pathlib import Path
from typing import cast

from segdeploy.data.dataset import Dataset
from segdeploy.data.layouts._base import Classes, Layout

__all__ = ["Classes", "Layout", "classes_of", "is_labelled", "layout", "names", "open_folder"]

DEFAULT = "plain"  # its errors say what a folder that no layout recognises lacks


def names() -> list[str]:
    """Every layout's name; imports none of them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def layout(name: str) -> Layout:
    return cast("Layout", importlib.import_module(f"{__name__}.{name}"))


def open_folder(root: Path) -> Dataset:
    """The pictures of a labelled folder, in the first layout that recognises it."""
    return layout(_recognised(root) or DEFAULT).open_folder(root)


def classes_of(data: Dataset, *, ignore_index: int) -> Classes:
    """Names and colours of a labelled folder's classes."""
    return layout(_recognised(data.root) or DEFAULT).classes_of(data, ignore_index=ignore_index)


def is_labelled(root: Path) -> bool:
    """Whether some layout recognises masks in a folder."""
    return _recognised(root) is not None


def _recognised(root: Path) -> str | None:
    others = [name for name in names() if name != DEFAULT]
    return next((name for name in (*others, DEFAULT) if layout(name).recognises(root)), None)
