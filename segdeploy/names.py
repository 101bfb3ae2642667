"""Names that files and users give and that become paths: what such a name may be, and places that cannot climb."""

import os
import re
from pathlib import Path, PurePath

from segdeploy.errors import InvalidFileError, InvalidRequestError

LONGEST = 100  # bytes; with a suffix and `.json` it is still far from the 255 of a file's name
SHOWN = 60  # characters of a refused name
_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_NEW = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # of Windows, whatever suffix follows


def require_name(text: str, what: str) -> str:
    """The name, once it can be a part of a file's name on every system. Raise InvalidRequestError, naming `what`.

    1 to 100 ASCII letters, digits, `_`, `-` and `.`, no dot in front, no two dots in a row, no device of Windows.
    """
    if len(text) > LONGEST or ".." in text or not _PLAIN.fullmatch(text) or _DEVICE.fullmatch(text):
        raise InvalidRequestError(
            f"{what} is named {shown(text)}, which is no plain name.",
            f"Give 1 to {LONGEST} letters, digits, _ - and . (not in front, not two in a row), no device of Windows.",
        )
    return text


def require_new_name(text: str, what: str) -> str:
    """The name that a user gives to a network, once files can begin with it. Raise InvalidRequestError, naming `what`.

    Up to 100 ASCII letters, digits, `-` and `_`, a letter or a digit in front. No dot: `a.last` would share a file
    with `a`.
    """
    if len(text) > LONGEST or not _NEW.fullmatch(text) or _DEVICE.fullmatch(text):
        raise InvalidRequestError(
            f"{shown(text)} cannot be the name of {what}.",
            f"Give up to {LONGEST} letters (a to z), digits, - and _, the first of them a letter or a digit.",
        )
    return text


def below(folder: Path, name: str) -> Path:
    """`folder / name`, once that lies below the folder, the links of the folders between followed.

    Raise InvalidFileError where it does not. What lies there may be a link: it is replaced, never written through.
    """
    if not _stays(folder, name):
        raise InvalidFileError(
            f"{shown(name)} does not lie below {folder}.", "Take files that segdeploy wrote, or name another folder."
        )
    return folder / name


def _stays(folder: Path, name: str) -> bool:
    path = PurePath(name)
    if not path.parts or path.is_absolute() or "\0" in name or ".." in re.split(r"[/\\]", name):
        return False
    try:
        os.fsencode(name)
        return (folder / path.parent).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a circle of links, text that no file system takes
        return False


def shown(text: str) -> str:
    """A name in quotes, control characters spelled out, its end left out where it is long."""
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
