"""JSON of annotation tools, in bounded memory, and the images that such documents name."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.names import below, shown
from segdeploy.spec import MAX_CLASSES

LARGEST = 1 << 30  # bytes: COCO's largest is half of that
T = TypeVar("T")


def read(path: Path, kind: type[T]) -> T:
    """A document as a type; fields that the type does not have are ignored. Raise InvalidFileError for any other."""
    require_bounded(path)
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).replace("`", "").split())
        raise InvalidFileError(f"{path} cannot be read as annotations: {reason}.", "Export it again.") from error


def require_bounded(path: Path) -> None:
    """Raise InvalidFileError for a file that would take too much memory."""
    if (size := path.stat().st_size) > LARGEST:
        raise InvalidFileError(f"{path} has {size:,} bytes; at most {LARGEST:,} are read.", "Divide it.")


def located(name: str, folders: Sequence[Path], document: Path) -> Path:
    """The image that a document names, in the first of the folders that has it; no name leads out of its folder.

    Raise InvalidFileError where it does, InvalidRequestError where the image is not there.
    """
    found = next((folder for folder in folders if (folder / name).is_file()), None)
    path = below(found or folders[0], name)
    if found is not None:
        return path
    raise InvalidRequestError(
        f"{document} names the image {shown(name)}, which is not in {folders[0]}.",
        "Bring the image, or correct the file.",
    )


def require_few(count: int, document: Path) -> None:
    """Raise InvalidRequestError for more classes than a class map holds, and for none."""
    if not 1 <= count <= MAX_CLASSES:
        raise InvalidRequestError(
            f"{document} has {count} classes, with the background where there is one; a class map holds 1 to "
            f"{MAX_CLASSES}.",
            "Merge classes.",
        )
