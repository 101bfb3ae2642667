"""How labelled folders are laid out: one public file each, found by listing the folder."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

from segdeploy import palettes
from segdeploy.data import _facts
from segdeploy.data.dataset import Classes, DataFolder, Dataset
from segdeploy.data.layouts._base import Layout
from segdeploy.errors import InvalidRequestError
from segdeploy.paths import shown

__all__ = ["Classes", "Layout", "classes_of", "is_labelled", "layout", "names", "open_folder", "published_values"]

DEFAULT = "plain"  # its errors say what a folder that no layout recognises lacks
GENERAL = "folders"  # takes what many others look like: asked where none of them recognises a folder


def names() -> list[str]:
    """Every layout's name; imports none of them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def layout(name: str) -> Layout:
    if name not in names():
        raise InvalidRequestError(f"there is no layout {name!r}.", f"Choose one of {', '.join(names())}.")
    return cast("Layout", importlib.import_module(f"{__name__}.{name}"))


def open_folder(given: Path | DataFolder) -> Dataset:
    """The pictures of a labelled folder, in the layout that is named, else in the one that recognises it.

    Raise InvalidRequestError where two recognise it, and SegdeployError where the folder is not whole.
    """
    folder = DataFolder.of(given)
    name = folder.layout or _recognised(folder.path) or DEFAULT
    return dataclasses.replace(layout(name).open_folder(folder.path), layout=name)


def classes_of(data: Dataset, *, ignore_index: int) -> Classes:
    """Names and colours of a labelled folder's classes: class_0 and so on where it names none, to the highest index."""
    if data.classes is not None:
        return data.classes
    facts = _facts.of(data, ignore_index=ignore_index)
    values = {value for mask in facts.masks.values() for value, _ in mask.pixels}
    highest = max(values - {ignore_index}, default=0)
    if highest == 0:
        raise InvalidRequestError(
            f"the masks of {data.root} hold one class, 0, and {ignore_index}, which is ignored.",
            "Write the second class as 1 (0/255 masks: divide by 255), or name the classes in classes.csv.",
        )
    numbered = tuple(f"class_{index}" for index in range(highest + 1))
    return Classes(numbered, palettes.default_colours(len(numbered)), named=False)


def published_values(classes: Iterable[str]) -> tuple[int, ...]:
    """Of each class its value in the masks of its data set, as they are published.

    The data set is the one whose classes these are, all of them, in any order. Of a name with synonyms, divided by
    commas, the first counts, in any case. Raise InvalidRequestError where there is no such data set.
    """
    wanted = tuple(map(_first_synonym, classes))
    known = {name: values for name in names() if (values := _published(layout(name)))}
    for values in known.values():
        if sorted(values) == sorted(wanted):
            return tuple(values[name] for name in wanted)
    raise InvalidRequestError(
        f"the {len(wanted)} classes {shown(wanted[0])} to {shown(wanted[-1])} are those of no data set whose values "
        f"are known ({', '.join(known)}).",
        "Leave --values original out: masks hold the indices of the classes.",
    )


def _published(data_set: Layout) -> Mapping[str, int]:
    values: Mapping[str, int] = getattr(data_set, "PUBLISHED_VALUES", {})
    return {_first_synonym(name): value for name, value in values.items()}


def _first_synonym(name: str) -> str:
    return name.partition(",")[0].strip().casefold()


def is_labelled(given: Path | DataFolder) -> bool:
    """Whether a layout is named, or some layout recognises masks in a folder."""
    folder = DataFolder.of(given)
    return folder.layout is not None or _recognised(folder.path) is not None


def _recognised(root: Path) -> str | None:
    found = [name for name in names() if name != GENERAL and layout(name).recognises(root)]
    if len(found) > 1:
        raise InvalidRequestError(
            f"{root} looks like the layouts {' and '.join(found)}.", f"Say which it is: --layout {found[0]}"
        )
    if found:
        return found[0]
    return GENERAL if layout(GENERAL).recognises(root) else None
