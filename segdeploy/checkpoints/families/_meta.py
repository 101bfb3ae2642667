"""What OpenMMLab's checkpoints say beside their tensors: the configuration's text, classes, colours."""

import re
from collections.abc import Mapping
from typing import Any

from segdeploy.palettes import Colour

LONGEST = 1_000_000  # characters of a configuration
_NUMBER = r"\s*([0-9.eE+-]{1,24})\s*"


def config_text(facts: Mapping[str, Any]) -> str:
    """The configuration, where the file holds it as text."""
    meta = _items(facts.get("meta"))
    found = next((meta[key] for key in ("cfg", "config") if isinstance(meta.get(key), str)), "")
    return str(found)[:LONGEST]


def classes(facts: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[Colour, ...]]:
    """Names and colours of the classes, where the file has them: nothing else than plain lists is taken."""
    meta = _items(facts.get("meta"))
    about = _items(meta.get("dataset_meta"))
    named = about.get("classes") or meta.get("CLASSES") or ()
    palette = about.get("palette") or meta.get("PALETTE") or ()
    if not isinstance(named, list | tuple) or not all(isinstance(each, str) for each in named):
        return (), ()
    names = tuple(each.strip() for each in named)
    if not isinstance(palette, list | tuple) or len(palette) != len(names) or not all(map(_is_colour, palette)):
        return names, ()
    return names, tuple((int(r), int(g), int(b)) for r, g, b in palette)


def three(config: str, name: str) -> tuple[float, float, float] | None:
    """Three numbers in brackets behind a name."""
    found = re.search(rf"\b{name}\W{{1,4}}{_NUMBER},{_NUMBER},{_NUMBER}", config)
    try:
        return None if found is None else (float(found[1]), float(found[2]), float(found[3]))
    except ValueError:
        return None


def size(config: str) -> tuple[int, int] | None:
    """(height, width) of the crop that the network was trained on."""
    found = re.search(r"crop_size\W{1,4}(\d{1,4})\s*,\s*(\d{1,4})", config)
    return None if found is None else (int(found[1]), int(found[2]))


def _items(value: object) -> Mapping[str, Any]:
    """A dictionary, or the items of an object of a class derived from it."""
    items = getattr(value, "items", None)
    if isinstance(value, dict):
        return value
    return items if isinstance(items, dict) else {}


def _is_colour(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(each, int) for each in value)  # noqa: PLR2004 - R, G, B
