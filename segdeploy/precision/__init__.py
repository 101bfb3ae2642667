"""Low precision: one public file each, found by listing the folder (a leading underscore is no precision)."""

import importlib
import pkgutil
from typing import cast

from segdeploy.errors import InvalidRequestError
from segdeploy.precision._base import Layers, PrecisionModule, Range, Tolerance

__all__ = ["Layers", "PrecisionModule", "Range", "Tolerance", "forms", "module", "names"]


def names() -> list[str]:
    """`fp16`, `int8` and so on; imports none of them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def module(name: str) -> PrecisionModule:
    """The file of a precision. Raise InvalidRequestError where there is none."""
    if name not in names():
        raise InvalidRequestError(f"there is no low precision {name!r}.", f"Choose one of {', '.join(names())}.")
    return cast("PrecisionModule", importlib.import_module(f"{__name__}.{name}"))


def forms() -> list[str]:
    """How graphs of some precision may be spelled, over all of them."""
    return sorted({form for name in names() for form in module(name).FORMS})
