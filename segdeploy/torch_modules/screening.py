"""A `.pt2` archive before torch.export loads it: it may hold a program of tensor operators, and nothing else that runs.

torch.export.load unpickles what an archive says is pickled, looks operators up by any name below `torch`, and
evaluates expressions as Python (torch 2.13, `_export/serde/serialize.py`). An archive of today's torch.export.save
needs the first for its example inputs alone, the second for ATen, and the third for arithmetic.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segdeploy.errors import InvalidFileError
from segdeploy.paths import shown

MOST_BYTES = 2**33  # of an archive, which is not compressed
MOST_ENTRIES = 50_000
MOST_PROGRAM_BYTES = 2**28  # of a part that is JSON or example inputs
AGAIN = "Save it again where it comes from: torch.export.save(torch.export.export(module, (images,)), FILE)"
_PROGRAM = re.compile(r"models/[^/]+\.json")
_CONFIG = re.compile(r"data/(weights|constants)/[^/]+_config\.json")
_INPUTS = re.compile(r"data/sample_inputs/[^/]+\.pt")
_PLAIN = re.compile(
    r"data/(weights/weight_\d+|constants/tensor_\d+)|extra/.*|archive_format|archive_version|byteorder|\.?data/version"
    r"|\.data/serialization_id"
)
_TARGETS = re.compile(
    r"torch\.ops\.(aten|higher_order|prims|quantized_decomposed|torchvision)\.\w+(\.\w+)?|torch\.sym_\w+|"
    r"_operator\.\w+|math\.\w+|torch\._check\w*|torch\._assert\w*"
)
_HARMLESS_OPERATORS = re.compile(r"(?!.*(caller|methodcaller|itemgetter|from_file|_print))")
_EXPRESSION = re.compile(r"[A-Za-z0-9_ +\-*/%(),.<>=&|~']*")
_TEXT = re.compile(r"[A-Za-z]\w*")
_NAMES = re.compile(
    r"[suzf]\d+|Symbol|positive|nonnegative|integer|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|IntTrueDiv|TrueDiv|FloorToInt|CeilToInt|TruncToInt|RoundToInt|"
    r"ToFloat|CleanDiv|Identity|Eq|Ne|Ge|Gt|Le|Lt|And|Or|Not|Piecewise|True|False|int_oo|oo|Where|ModularIndexing|"
    r"PowByNatural|FloatPow|OpaqueUnaryFn_\w+|RoundDecimal|Integer"
)
Json = Any


def require_harmless(path: Path) -> None:
    """Raise InvalidFileError for what is no archive of a program, or holds more than operators and numbers."""
    try:
        with zipfile.ZipFile(path) as archive:
            _require_parts(path, archive)
            for entry in archive.infolist():
                _require_part(path, archive, entry)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, ValueError, OSError) as error:
        raise refused(path, f"is no archive of torch.export: {error}") from error
    except RecursionError as error:
        raise refused(path, "is nested too deep") from error


def refused(path: Path, reason: str, remedy: str = AGAIN) -> InvalidFileError:
    return InvalidFileError(f"{shown(path)} {reason.rstrip('.')}.", remedy)


def _require_parts(path: Path, archive: zipfile.ZipFile) -> None:
    entries = archive.infolist()
    if len(entries) > MOST_ENTRIES or sum(entry.file_size for entry in entries) > MOST_BYTES:
        raise refused(path, f"holds more than {MOST_ENTRIES:,} parts or {MOST_BYTES:,} bytes")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise refused(path, "is compressed, which torch.export.save never does")
    if not any(_PROGRAM.fullmatch(_inner(entry)) for entry in entries):
        raise refused(path, "holds no program of torch.export")


def _inner(entry: zipfile.ZipInfo) -> str:
    """The name of a part below the archive's own folder."""
    return entry.filename.partition("/")[2]


def _require_part(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    name = _inner(entry)
    if _PROGRAM.fullmatch(name):
        _require_program(path, _json(path, archive, entry))
    elif _CONFIG.fullmatch(name):
        _require_unpickled(path, _json(path, archive, entry))
    elif _INPUTS.fullmatch(name):
        _require_tensors(path, _content(path, archive, entry))
    elif not _PLAIN.fullmatch(name):
        raise refused(path, f"holds {shown(name)}, which no program of tensor operators needs")


def _content(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    if entry.file_size > MOST_PROGRAM_BYTES:
        raise refused(path, f"describes itself in more than {MOST_PROGRAM_BYTES:,} bytes")
    return archive.read(entry)


def _json(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Json:
    return json.loads(_content(path, archive, entry))


def _require_unpickled(path: Path, config: Json) -> None:
    if any(value for key, value in _pairs(config) if key == "use_pickle"):
        raise refused(path, "holds pickled objects, which run code when they are read")


def _require_tensors(path: Path, inputs: bytes) -> None:
    """Example inputs are a pickle; torch would fall back to running it where it is more than tensors."""
    import torch

    try:
        torch.load(io.BytesIO(inputs), weights_only=True)
    except Exception as error:  # of torch's unpickler: unrelated kinds
        raise refused(path, "has example inputs that are no tensors") from error


def _require_program(path: Path, program: Json) -> None:
    for key, value in _pairs(program):
        if key == "target" and isinstance(value, str) and not _is_operator(value):
            raise refused(path, f"calls {shown(value)}, which is no tensor operator")
        if key == "expr_str" and not _is_arithmetic(value):
            raise refused(path, f"computes a size as {shown(str(value)[:60])}, which is no arithmetic")
    ranges = (value for key, value in _pairs(program) if key == "range_constraints" and isinstance(value, dict))
    if not all(_is_arithmetic(name) for found in ranges for name in found):
        raise refused(path, "limits a size that is no arithmetic")


def _is_operator(target: str) -> bool:
    """An operator, or the name of a weight: those have no dot behind a module that is looked into."""
    is_looked_up = target.startswith(("_operator", "torch", "math", "#"))
    return not is_looked_up or bool(_TARGETS.fullmatch(target) and _HARMLESS_OPERATORS.match(target))


def _is_arithmetic(expression: Json) -> bool:
    is_plain = isinstance(expression, str) and _EXPRESSION.fullmatch(expression) is not None
    return is_plain and all(_NAMES.fullmatch(name) for name in _TEXT.findall(expression)) and "__" not in expression


def _pairs(document: Json) -> Iterator[tuple[str, Json]]:
    """Every key with its value, however deep."""
    if isinstance(document, dict):
        yield from document.items()
    for inner in document.values() if isinstance(document, dict) else document if isinstance(document, list) else ():
        yield from _pairs(inner)
