"""Files may be given as text, and are shown as text."""

import dataclasses
import os
from pathlib import Path
from typing import Any


def shown(path: Path | str) -> str:
    """A path on one line, whatever its name holds."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


def hold_paths(options: Any, *names: str) -> None:  # noqa: ANN401 - a frozen dataclass that is being made
    """Make paths of the fields of an options type that were given as text; called from its `__post_init__`."""
    if not dataclasses.is_dataclass(options):
        raise TypeError(f"{options!r} is no dataclass")
    for name in names:
        value = getattr(options, name)
        if isinstance(value, str | os.PathLike) and not isinstance(value, Path):
            object.__setattr__(options, name, Path(value))
