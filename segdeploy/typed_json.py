"""JSON that segdeploy writes, read back into dataclasses: every field is there, none is unknown, each has its type."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec

from segdeploy.errors import InvalidFileError, SegdeployError

SMALLEST, LARGEST = 1e-9, 1e15  # of a number that something measured

Number = Annotated[float, msgspec.Meta(ge=-LARGEST, le=LARGEST)]
Positive = Annotated[float, msgspec.Meta(ge=SMALLEST, le=LARGEST)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
T = TypeVar("T")
_PLACE = re.compile(r"^(?P<problem>.*?)(?: - at `\$\.?(?P<place>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`")


def to_builtins(value: object) -> Any:  # noqa: ANN401 - a JSON value
    """A dataclass as the JSON value it is written as: fields in their order, paths as text."""
    return msgspec.to_builtins(value, enc_hook=str)


def to_text(value: object, *, sort_keys: bool = False) -> bytes:
    """The JSON document that stands in a file."""
    return (json.dumps(to_builtins(value), indent=1, sort_keys=sort_keys) + "\n").encode()


def parse(text: bytes | str, *, where: str, remedy: str) -> Any:  # noqa: ANN401 - a JSON value
    """A JSON document. Raise InvalidFileError, naming `where`, for anything else, NaN and infinity included."""
    try:
        # Not msgspec: it refuses the lone surrogates that stand for the bytes of a file name that is not UTF-8.
        return json.loads(text, parse_constant=_refused, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise InvalidFileError(f"{where} is not JSON: {error}.", remedy) from error


def _refused(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    return number if math.isfinite(number := float(text)) else _refused(text)


def convert(document: object, kind: type[T], *, where: str, remedy: str, partial: bool = False) -> T:
    """A JSON value as a dataclass. Raise InvalidFileError that names `where` and the field that is wrong.

    A field that is missing or unknown is an error, whatever its default; with `partial`, fields that have a default
    may be missing and unknown ones are ignored.
    """
    try:
        value = msgspec.convert(document, kind, dec_hook=_from_text)
    except msgspec.ValidationError as error:
        raise InvalidFileError(f"{where}: {_sentence(str(error))}.", remedy) from error
    except SegdeployError as error:
        raise InvalidFileError(f"{where}: {error.what}", error.remedy) from error
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidFileError(f"{where} is not as segdeploy writes it: {error}.", remedy) from error
    if not partial and (difference := next(_differing_fields(document, to_builtins(value), ""), None)):
        raise InvalidFileError(f"{where}: {difference}.", remedy)
    return value


def _from_text(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"expected a {kind.__name__.lower()} as text, got {value!r}")


def _sentence(message: str) -> str:
    """Msgspec's message with the field in front: `stages[0].pixels: expected int, got str`."""
    found = _PLACE.match(message)
    problem, place = (found.group("problem"), found.group("place") or "") if found else (message, "")
    if missing := _MISSING.match(problem):
        return f"the field {place}{'.' if place else ''}{missing.group('name')} is missing"
    plain = problem.replace("`", "")
    return f"{place or 'the document'}: {plain[:1].lower()}{plain[1:]}"


def _differing_fields(document: Any, known: Any, place: str) -> Iterator[str]:  # noqa: ANN401 - two JSON values
    """The fields that only one of two documents has."""
    if isinstance(document, dict) and isinstance(known, dict):
        for name in document:
            if name not in known:
                yield f"the field {place}{name} is unknown"
            else:
                yield from _differing_fields(document[name], known[name], f"{place}{name}.")
        yield from (f"the field {place}{name} is missing" for name in known if name not in document)
    elif isinstance(document, list) and isinstance(known, list | tuple):
        for index, (item, its) in enumerate(zip(document, known, strict=True)):
            yield from _differing_fields(item, its, f"{place.removesuffix('.')}[{index}].")
