"""What `infer` writes: one public file for each kind, found by listing the folder (a leading underscore is no kind)."""

import importlib
import importlib.util
import os
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from segdeploy import artifact, extras
from segdeploy.errors import InvalidRequestError
from segdeploy.inference.outputs._base import USUAL, Huge, Output, OutputOptions, RowWriter, Segmented

__all__ = ["USUAL", "Huge", "Output", "OutputOptions", "RowWriter", "Segmented"]
__all__ += ["folder", "folders", "load", "made_as", "names", "parse", "require", "require_installed", "require_used"]


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


def require_installed(kinds: Iterable[str]) -> None:
    """Raise MissingRuntimeError where a package that a kind needs is not here: before the work."""
    for kind in kinds:
        needed: str | None = getattr(load(kind), "NEEDS", None)
        if needed is not None and importlib.util.find_spec(needed) is None:
            raise extras.absent(needed)


def parse(text: str) -> tuple[str, ...]:
    """`mask,overlay` -> the kinds. Raise as `require` does."""
    return require(filter(None, map(str.strip, text.split(","))))


def load(name: str) -> Output:
    """The module that encodes one kind of output."""
    require([name])
    return cast("Output", importlib.import_module(f"{__name__}.{name}"))


def made_as(name: str, options: OutputOptions) -> str:
    """The digest of the options that the files of one kind depend on; empty where those are the usual ones."""
    asked, usual = ({field: getattr(each, field) for field in _options(name)} for each in (options, USUAL))
    return "" if asked == usual else artifact.digest(asked)


def require_used(kinds: Iterable[str], options: Iterable[str]) -> None:
    """Raise InvalidRequestError for an option that none of the kinds depends on."""
    used = {option for kind in kinds for option in _options(kind)}
    for option in options:
        if option not in used:
            takes = ", ".join(name for name in names() if option in _options(name))
            raise InvalidRequestError(
                f"--{option} is for {takes}, of which none is written.",
                f"Name one after --write, or leave --{option} out.",
            )


def _options(name: str) -> tuple[str, ...]:
    found: tuple[str, ...] = getattr(load(name), "OPTIONS", ())
    return found


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
