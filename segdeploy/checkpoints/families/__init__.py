"""Whose checkpoints can be taken: one public file per family, found by listing the folder."""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import cast

from segdeploy.checkpoints.families._base import Change, Family, Reading
from segdeploy.checkpoints.reading import Stored

__all__ = ["Change", "Family", "Reading", "family", "names", "recognised"]


def names() -> list[str]:
    """Every family's name; imports none of them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def family(name: str) -> Family:
    return cast("Family", importlib.import_module(f"{__name__}.{name}"))


def recognised(tensors: Mapping[str, Stored]) -> Family | None:
    """The first family that recognises a file."""
    return next((found for found in map(family, names()) if found.recognises(tensors)), None)
