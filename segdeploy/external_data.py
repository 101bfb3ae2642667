"""What an ONNX file holds beside its network: external data, which has to lie beside it, and metadata.

A walk over the protobuf itself, for a machine that only runs engines has no onnx package.
"""

import contextlib
import hashlib
import mmap
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from segdeploy.errors import InvalidFileError

Fields = Mapping[int, str]
# The fields of onnx.proto that lead to a tensor, by message.
LEADS: dict[str, Fields] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
EXTERNAL_DATA = 13
METADATA = 14  # of a model: pairs of text
MOST_FIELDS = 2**29
Content = bytes | mmap.mmap
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


def require_contained(path: Path, data: bytes | None = None) -> None:
    """Raise InvalidFileError where a graph reads anything but regular files beside it, within their sizes.

    `data`: what was read from `path`, where that is what counts. What lies in other files no sha256 covers.
    """
    try:
        with _mapped(path) if data is None else contextlib.nullcontext(data) as content:
            for entries in _external(content, 0, len(content), "model"):
                _require_beside(path, entries)
    except OSError as error:
        raise InvalidFileError(f"cannot read {path}: {error.strerror}.", "Check its permissions.") from error
    except (ValueError, IndexError, RecursionError) as error:
        raise InvalidFileError(f"{path} is no ONNX file: {error}.", "Export it again with segdeploy export.") from error


def sha256(path: Path) -> str:
    """Of a graph and of the files beside it that it reads; where it reads none, that of the file alone.

    Raise InvalidFileError as `require_contained` does.
    """
    require_contained(path)
    with _mapped(path) as content:
        names = sorted({entries["location"] for entries in _external(content, 0, len(content), "model")})
    digests = [_sha256(path), *(_sha256(path.with_name(name)) for name in names)]
    return digests[0] if not names else hashlib.sha256("".join(digests).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def metadata(path: Path) -> dict[str, str]:
    """The metadata of a graph. Raise InvalidFileError where it is no ONNX file."""
    try:
        with _mapped(path) as data:
            fields = _fields(data, 0, len(data))
            return dict(
                _entry(data, first, last) for field, kind, first, last in fields if (field, kind) == (METADATA, LENGTH)
            )
    except OSError as error:
        raise InvalidFileError(f"cannot read {path}: {error.strerror}.", "Check its permissions.") from error
    except (ValueError, IndexError) as error:
        raise InvalidFileError(f"{path} is no ONNX file: {error}.", "Export it again with segdeploy export.") from error


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


def _external(data: Content, start: int, end: int, message: str) -> Iterator[dict[str, str]]:
    """The external_data entries (location, offset, length) of every tensor in a message."""
    entries: dict[str, str] = {}
    for field, kind, first, last in _fields(data, start, end):
        if message == "tensor":
            if field == EXTERNAL_DATA and kind == LENGTH:
                key, value = _entry(data, first, last)
                if entries.setdefault(key, value) != value:
                    raise ValueError(f"a tensor has two values for {key!r}")
        elif kind == LENGTH and field in LEADS[message]:
            yield from _external(data, first, last, LEADS[message][field])
    if entries:
        yield entries


def _entry(data: Content, start: int, end: int) -> tuple[str, str]:
    texts = {
        field: data[first:last].decode() for field, kind, first, last in _fields(data, start, end) if kind == LENGTH
    }
    return texts.get(1, ""), texts.get(2, "")


def _fields(data: Content, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, kind, and where the value lies, of each field of a message."""
    while start < end:
        tag, start = _varint(data, start, end)
        if not 0 < tag >> 3 < MOST_FIELDS:  # runtimes drop the bits above, and would see another field
            raise ValueError(f"there is no field {tag >> 3}")
        kind = tag & 7
        first = start
        if kind == VARINT:
            _, start = _varint(data, start, end)
        elif kind == LENGTH:
            size, first = _varint(data, start, end)
            start = first + size
        elif kind in {FIXED64, FIXED32}:
            start += 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"byte {first} is no field of protobuf")
        if start > end:
            raise ValueError(f"it ends inside the field at byte {first}")
        yield tag >> 3, kind, first, start


def _varint(data: Content, start: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if start >= end:
            raise ValueError("it ends inside a number")
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the mark of the last byte
            return value, start
    raise ValueError(f"the number before byte {start} does not end")


def _require_beside(path: Path, entries: Mapping[str, str]) -> None:
    location = entries.get("location", "")
    remedy = "Export it again with segdeploy export: its graphs are one file."
    if not location or location in {".", ".."} or "/" in location or "\\" in location or "\0" in location:
        raise InvalidFileError(f"{path} reads {location!r}, which does not lie beside it.", remedy)
    beside = path.with_name(location)
    try:
        facts = beside.lstat()
    except OSError as error:
        raise InvalidFileError(f"{path} reads {location}: {error.strerror}.", remedy) from error
    if not stat.S_ISREG(facts.st_mode):
        raise InvalidFileError(f"{path} reads {location}, which is a link or no file.", remedy)
    offset, length = (_size(entries.get(key, "0"), path) for key in ("offset", "length"))
    if offset + length > facts.st_size:
        raise InvalidFileError(
            f"{path} reads {offset + length} bytes of {location}, which has {facts.st_size}.", remedy
        )


def _size(text: str, path: Path) -> int:
    if not text.isascii() or not text.isdigit():
        raise InvalidFileError(f"{path} gives the size {text!r}.", "Export it again with segdeploy export.")
    return int(text)
