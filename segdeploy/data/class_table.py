"""`classes.csv`: a line `name,r,g,b` for each class, in the order of the indices."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from segdeploy.data import dataset
from segdeploy.data.dataset import Classes
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.spec import MAX_CLASSES

NAME = "classes.csv"
_HEADERS = (["r", "g", "b"], ["red", "green", "blue"])


def of(folder: Path) -> Classes | None:
    """What the `classes.csv` of a folder says; None where there is none."""
    return read(folder / NAME) if (folder / NAME).is_file() else None


def read(table: Path) -> Classes:
    """Names and colours; a header, empty lines and comments (`#`, in front or at the end of a line) are no class."""
    if not table.is_file():
        raise InvalidRequestError(f"there is no table of classes {table}.", "Give a line name,r,g,b for each class.")
    try:
        rows = [(name.strip(), (_value(r), _value(g), _value(b))) for name, r, g, b in _rows(dataset.read_text(table))]
    except (ValueError, csv.Error) as error:
        raise InvalidFileError(
            f"{table} is not a table of classes: {error}.", "Give a line name,r,g,b for each class."
        ) from error
    if not 1 <= len(rows) <= MAX_CLASSES:
        raise InvalidRequestError(
            f"{table} names {len(rows)} classes; a class map holds 1 to {MAX_CLASSES}.", "Merge classes."
        )
    return Classes(tuple(name for name, _ in rows), tuple(colour for _, colour in rows))


def text(classes: Classes) -> str:
    """What `read` gives back as these classes."""
    written = io.StringIO()
    rows = ([name, *colour] for name, colour in zip(classes.names, classes.colours, strict=True))
    csv.writer(written, lineterminator="\n").writerows(rows)
    return written.getvalue()


def _rows(text: str) -> Iterator[list[str]]:
    rows = (row for row in csv.reader(io.StringIO(text, newline="")) if row and not row[0].lstrip().startswith("#"))
    for index, row in enumerate(rows):
        if index or [word.strip().lower() for word in row[1:]] not in _HEADERS:
            yield [*row[:3], ",".join(row[3:]).partition("#")[0]]


def _value(text: str) -> int:
    if not 0 <= (value := int(text)) < MAX_CLASSES:
        raise ValueError(f"{value} is outside 0..255")
    return value
