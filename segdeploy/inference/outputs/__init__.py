"""What `infer` writes: one public file for each kind, found by listing the folder (a leading underscore is no kind)."""

import importlib
import os
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from segdeploy.errors import InvalidRequestError
from segdeploy.inference.outputs._base import Output, Segmented

__all__ = ["Output", "Segmented", "folder", "folders", "load", "names", "parse", "require"]


def names() -> list[str]:
    """Every kind of output, as it is typed after --write; imports none of them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def require(kinds: Iterable[str]) -> tuple[str, ...]:
    """The kinds in their order, each once. Raise InvalidRequestError for an unknown one, or for none at all."""
    wanted, known = tuple(dict.fromkeys(kinds)), names()
    remedy = f"Choose one or more of {', '.join(known)}."
    if not wanted:
        raise InvalidRequestError("no kind of output was named.", remedy)
    for kind in wanted:
        if kind not in known:
            raise InvalidRequestError(f"there is no output {kind!r}.", remedy)
    return wanted


def parse(text: str) -> tuple[str, ...]:
    """`mask,overlay` -> the kinds. Raise as `require` does."""
    return require(filter(None, map(str.strip, text.split(","))))


def load(name: str) -> Output:
    """The module that encodes one kind of output."""
    require([name])
    return cast("Output", importlib.import_module(f"{__name__}.{name}"))


def folder(out: Path, name: str) -> Path:
    """Where the files of one kind go: `out` itself, or a folder beside it."""
    suffix: str = getattr(load(name), "FOLDER_SUFFIX", f"-{name}")
    if not suffix:
        return out
    named = os.path.abspath(out) if out.name in {"", ".."} else out  # noqa: PTH100 - `..` goes, links stay
    return Path(f"{named}{suffix}")


def folders(out: Path) -> list[Path]:
    """Where files of any kind may lie, from earlier runs with the same `out`."""
    return [folder(out, name) for name in names()]
