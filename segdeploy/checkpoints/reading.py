"""What a file of weights holds, whoever wrote it: its values and its tensors, read without running anything of it.

PyTorch's format (a ZIP archive, or the stream of before 1.6), safetensors and NumPy's `.npz`. Shapes, counts and sizes
are checked before memory is taken; a tensor is a view of the file until it is asked for.
"""

import dataclasses
import functools
import io
import json
import math
import mmap
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.checkpoints import _pickles
from segdeploy.checkpoints._pickles import Inert, TensorRecord
from segdeploy.errors import InvalidFileError, InvalidRequestError

MOST_TENSORS = 20_000
MOST_ELEMENTS = 2**29  # of all tensors that are taken: 2 GiB in float32, eight times the largest of the four networks
MOST_PICKLE = 2**26  # bytes of the part that says what is where
MOST_UNPACKED = 2**30  # bytes of an archive that is compressed
MOST_DIMENSIONS = 8
WEIGHTS = "Save its weights where it can be loaded: torch.save(model.state_dict(), FILE)."
OTHER_FILE = "Give a file of weights: .pth, .pt, .ckpt, .safetensors or .npz."
DEPTH = 6  # of the containers around a network's tensors
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the format before PyTorch 1.6
_BFLOAT16 = "bfloat16"
_KINDS = (  # of an element: in NumPy, as PyTorch names storages and types, and in safetensors
    ("<f4", "Float", "float32", "F32"),
    ("<f8", "Double", "float64", "F64"),
    ("<f2", "Half", "float16", "F16"),
    (_BFLOAT16, "BFloat16", "bfloat16", "BF16"),
    ("<i8", "Long", "int64", "I64"),
    ("<i4", "Int", "int32", "I32"),
    ("<i2", "Short", "int16", "I16"),
    ("i1", "Char", "int8", "I8"),
    ("u1", "Byte", "uint8", "U8"),
    ("?", "Bool", "bool", "BOOL"),
)
_KIND_OF = {name: kind for kind, *names in _KINDS for name in names}


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: its shape, and how it is read."""

    shape: tuple[int, ...]
    read: Callable[[], NDArray[Any]]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def open_file(path: Path) -> Any:  # noqa: ANN401 - nested dictionaries, lists, plain values, `Stored` and `Inert`
    """What a file holds.

    Raise InvalidRequestError where there is none, InvalidFileError for what is no file of weights.
    """
    if not path.is_file():
        raise InvalidRequestError(f"there is no file {path}.", OTHER_FILE)
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise InvalidFileError(f"{path} is empty.", "Copy or download it again.")
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _opened(content, path)
    except _pickles.PickleError as error:
        raise InvalidFileError(f"{path} holds no weights: {error}.", OTHER_FILE) from error
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, struct.error) as error:
        raise InvalidFileError(f"{path} is damaged: {error}.", "Copy or download it again.") from error
    except OSError as error:
        raise InvalidFileError(f"cannot read {path}: {error.strerror or error}.", "Check its permissions.") from error


def _opened(content: mmap.mmap, path: Path) -> Any:  # noqa: ANN401 - as open_file
    if content[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(path) as archive:
            return _archive(archive, content, path)
    if content[:1] == b"\x80":
        return _stream(content, path)
    if (header := _safetensors_header(content)) is not None:
        return _safetensors(header, content, path)
    raise InvalidFileError(f"{path} is no file of weights that is known here.", OTHER_FILE)


# PyTorch's archive, and NumPy's


def _archive(archive: zipfile.ZipFile, content: mmap.mmap, path: Path) -> Any:  # noqa: ANN401 - as open_file
    entries = {entry.filename: entry for entry in archive.infolist()}
    if any(name.endswith("constants.pkl") or "/code/" in name for name in entries):
        raise InvalidFileError(
            f"{path} is a TorchScript archive: it holds a network's code.",
            "Save its weights: torch.save(torch.jit.load(FILE).state_dict(), OTHER).",
        )
    pickled = next((name for name in entries if name.endswith("data.pkl")), None)
    if pickled is None and entries and all(name.endswith(".npy") for name in entries):
        return _arrays(archive, entries, path)
    if pickled is None:
        raise InvalidFileError(f"{path} is a ZIP archive without weights.", OTHER_FILE)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise InvalidFileError(f"{path} is compressed, which torch.save never does.", "Save it anew: torch.save.")
    if entries[pickled].file_size > MOST_PICKLE:
        raise InvalidFileError(f"{path} describes its tensors in more than {MOST_PICKLE:,} bytes.", WEIGHTS)
    value = _pickles.load(io.BytesIO(archive.read(pickled)))
    folder = pickled.removesuffix("data.pkl")

    def storage(key: str) -> memoryview:
        return _entry(content, entries.get(f"{folder}data/{key}"), path)

    return _with_tensors(value, storage, path)


def _entry(content: mmap.mmap, entry: zipfile.ZipInfo | None, path: Path) -> memoryview:
    """The bytes of an entry that is not compressed, where they lie in the file."""
    if entry is None:
        raise InvalidFileError(f"{path} lacks a part that it names.", "Copy or download it again.")
    begin = entry.header_offset
    name_length, extra_length = struct.unpack("<HH", content[begin + 26 : begin + 30])
    begin += 30 + name_length + extra_length
    return memoryview(content)[begin : begin + entry.file_size]


def _arrays(archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo], path: Path) -> dict[str, Stored]:
    """The arrays of an `.npz`, unpacked: they are small, or they are refused."""
    if sum(entry.file_size for entry in entries.values()) > MOST_UNPACKED:
        raise InvalidFileError(f"{path} unpacks to more than {MOST_UNPACKED:,} bytes.", OTHER_FILE)
    found = {}
    for name, entry in entries.items():
        data = io.BytesIO(archive.open(entry).read(entry.file_size))
        try:
            array: NDArray[Any] = np.lib.format.read_array(data, allow_pickle=False)
        except (ValueError, MemoryError) as error:  # a shape that memory does not hold is asked for at once
            raise InvalidFileError(f"{path}: {name} is no array of numbers: {error}.", OTHER_FILE) from error
        found[name.removesuffix(".npy")] = Stored(array.shape, functools.partial(_same, array))
    return found


def _same(array: NDArray[Any]) -> NDArray[Any]:
    return array


# The stream of before PyTorch 1.6


def _stream(content: mmap.mmap, path: Path) -> Any:  # noqa: ANN401 - as open_file
    content.seek(0)
    if _pickles.load(content) != _MAGIC or _pickles.load(content) != _PROTOCOL:
        raise InvalidFileError(f"{path} is a pickle, but not one that torch.save wrote.", WEIGHTS)
    system, value, keys = (_pickles.load(content) for _ in range(3))
    if not isinstance(system, dict) or system.get("little_endian") is not True or not isinstance(keys, list):
        raise InvalidFileError(f"{path} was not written as torch.save does on today's machines.", WEIGHTS)
    sizes = {record.storage[2]: _size_of(record) for record in _records(value)}
    places, begin = {}, content.tell()
    for key in keys:
        (count,) = struct.unpack("<q", content[begin : begin + 8])
        length = count * sizes.get(key, 1)
        if count < 0 or begin + 8 + length > len(content):
            raise InvalidFileError(f"{path} ends early.", "Copy or download it again.")
        places[key] = (begin + 8, begin + 8 + length)
        begin += 8 + length

    def storage(key: str) -> memoryview:
        return memoryview(content)[slice(*places.get(key, (0, 0)))]

    return _with_tensors(value, storage, path)


def _records(value: Any) -> list[TensorRecord]:  # noqa: ANN401 - whatever was pickled
    found = [each for each in _pickles.inside(value, DEPTH) if isinstance(each, TensorRecord)]
    return [record for record in found if isinstance(record.storage, tuple) and len(record.storage) > 2]  # noqa: PLR2004 - its key


def _size_of(record: TensorRecord) -> int:
    return _itemsize(_type_of(record))


def _type_of(record: TensorRecord) -> str:
    kind = record.dtype or getattr(record.storage[1], "kind", "")
    name = str(kind).rpartition(".")[2]
    found = _KIND_OF.get(name.removesuffix("Storage"))
    if found is None:
        raise _pickles.PickleError(f"a tensor has the type {name}, which no network of ours has")
    return found


def _itemsize(kind: str) -> int:
    return 2 if kind == _BFLOAT16 else np.dtype(kind).itemsize


def _with_tensors(value: Any, storage: Callable[[str], memoryview], path: Path) -> Any:  # noqa: ANN401 - as open_file
    """The same, its tensors ready to be read."""
    seen: dict[int, Any] = {}  # what is named in many places, or holds itself, is walked once

    def replaced(part: Any, depth: int) -> Any:  # noqa: ANN401 - a part of the value
        if isinstance(part, TensorRecord):
            return _stored(part, storage, path)
        if not isinstance(part, dict | Inert) or not depth:
            return part
        if id(part) not in seen:
            seen[id(part)] = None
            seen[id(part)] = _with_parts(part, lambda each: replaced(each, depth - 1))
        return seen[id(part)]

    return replaced(value, DEPTH)


def _with_parts(part: Any, replaced: Callable[[Any], Any]) -> Any:  # noqa: ANN401 - a dictionary or an Inert
    if isinstance(part, dict):
        return {key: replaced(each) for key, each in part.items()}
    items = {key: replaced(each) for key, each in part.items.items()}
    return dataclasses.replace(part, items=items, state=replaced(part.state))


def _stored(record: TensorRecord, storage: Callable[[str], memoryview], path: Path) -> Stored:
    kind, shape = _type_of(record), record.shape
    if 0 in shape:
        return Stored(shape, lambda: np.zeros(shape, np.float32))
    if len(shape) > MOST_DIMENSIONS or len(shape) != len(record.strides) or min((*shape, *record.strides, 0)) < 0:
        raise InvalidFileError(f"{path} has a tensor of a shape that is none: {shape[:MOST_DIMENSIONS]}.", WEIGHTS)
    last = record.offset + sum((side - 1) * step for side, step in zip(shape, record.strides, strict=True))

    def read() -> NDArray[Any]:
        data = storage(str(record.storage[2]))
        size = _itemsize(kind)
        if math.prod(shape) * size > len(data) or not 0 <= record.offset <= last or (last + 1) * size > len(data):
            raise InvalidFileError(f"{path} has a tensor {shape} that reaches beyond its data.", WEIGHTS)
        flat = _numbers(data[: len(data) // size * size], kind)[record.offset :]
        steps = [step * flat.itemsize for step in record.strides]
        return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)

    return Stored(shape, read)


def _numbers(data: memoryview, kind: str) -> NDArray[Any]:
    if kind != _BFLOAT16:
        return np.frombuffer(data, kind)
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


# safetensors


def _safetensors_header(content: mmap.mmap) -> bytes | None:
    length = int.from_bytes(content[:8], "little")
    return content[8 : 8 + length] if content[8:9] == b"{" and length <= min(MOST_PICKLE, len(content)) else None


def _safetensors(header: bytes, content: mmap.mmap, path: Path) -> dict[str, Stored]:
    try:
        described = json.loads(header)
        facts = described.pop("__metadata__", {})
        found = {name: _of_safetensors(entry, content, 8 + len(header), path) for name, entry in described.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidFileError(
            f"{path} is a damaged safetensors file: {error}.", "Copy or download it again."
        ) from error
    return {**found, **{name: value for name, value in dict(facts).items() if name not in found}}


def _of_safetensors(entry: Any, content: mmap.mmap, first: int, path: Path) -> Stored:  # noqa: ANN401 - a JSON value
    kind, shape = _KIND_OF[entry["dtype"]], tuple(map(int, entry["shape"]))
    begin, end = (first + int(place) for place in entry["data_offsets"])
    if min((*shape, 0)) < 0 or begin < first or end - begin != math.prod(shape) * _itemsize(kind) or end > len(content):
        raise InvalidFileError(f"{path} has a tensor {shape} that reaches beyond its data.", "Copy it again.")
    return Stored(shape, lambda: _numbers(memoryview(content)[begin:end], kind).reshape(shape))
