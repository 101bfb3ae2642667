"""A document of JSON is the type that it was written from, or an error that names the file and the field."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segdeploy import typed_json
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.spec import Precision
from segdeploy.typed_json import Count, Number, Positive, Share

WHERE, AGAIN = "export/unet.json", "Make it again."
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """A part of a whole."""

    name: str
    share: Share = 0.0
    count: Count | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """One field of every sort that files have."""

    schema: Literal[2] = 2
    precision: Precision
    path: Path | None = None
    items: tuple[Item, ...] = ()
    by_name: Mapping[str, Item] = dataclasses.field(default_factory=dict)
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ms: Positive | None = None
    change: Number = 0.0

    def __post_init__(self) -> None:
        if "" in self.words:
            raise InvalidRequestError("a word has no name.", "Name it.")


WHOLE = Whole(
    precision=Precision.INT8,
    path=Path("a/b.onnx"),
    items=(Item("first", 0.25, 3), Item("second")),
    by_name={"ort": Item("x")},
    words={"layer": "gives accuracy back"},
    ms=1.5,
    change=-2.0,
)
TEXT = st.text()
ITEMS = st.builds(Item, TEXT, st.floats(0, 1), st.none() | st.integers(0, 2**40))
WHOLES = st.builds(
    Whole,
    precision=st.sampled_from(Precision),
    path=st.none() | st.text(st.characters(categories=["L", "N"]), min_size=1).map(Path),
    items=st.lists(ITEMS, max_size=3).map(tuple),
    by_name=st.dictionaries(TEXT, ITEMS, max_size=3),
    words=st.dictionaries(st.text(min_size=1), TEXT, max_size=3),
    ms=st.none() | st.floats(1e-9, 1e15),
    change=st.floats(-1e15, 1e15),
)


def read(document: object, *, partial: bool = False) -> Whole:
    return typed_json.convert(document, Whole, where=WHERE, remedy=AGAIN, partial=partial)


def with_change(path: str, value: object) -> dict[str, Any]:
    """The document of `WHOLE` with another value at a place such as `items.0.name`."""
    document: dict[str, Any] = json.loads(typed_json.to_text(WHOLE))
    *above, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    holder: Any = document
    for step in above:
        holder = holder[step]
    holder[last] = value
    return document


def refused(document: object, *, partial: bool = False) -> str:
    with pytest.raises(InvalidFileError) as error:
        read(document, partial=partial)
    assert error.value.what.startswith(f"{WHERE}: ")
    return error.value.what.removeprefix(f"{WHERE}: ")


def test_a_type_is_written_with_its_fields_in_their_order_and_paths_as_text() -> None:
    """Files are compared by eye and by their bytes."""
    written = typed_json.to_text(WHOLE)
    assert written.endswith(b"\n}\n")
    assert list(json.loads(written)) == [field.name for field in dataclasses.fields(Whole)]
    assert json.loads(written)["path"] == "a/b.onnx"
    assert json.loads(written)["precision"] == "int8"
    assert json.loads(written)["items"][1] == {"name": "second", "share": 0.0, "count": None}
    assert list(json.loads(typed_json.to_text(WHOLE, sort_keys=True))) == sorted(json.loads(written))


@given(WHOLES)
def test_what_was_written_is_read_as_it_was(whole: Whole) -> None:
    text = typed_json.to_text(whole)
    assert read(typed_json.parse(text, where=WHERE, remedy=AGAIN)) == whole
    assert typed_json.to_text(read(json.loads(text))) == text


@pytest.mark.parametrize(
    "text",
    ["", "{", "{'a': 1}", '{"a": NaN}', "[Infinity]", "-Infinity", "[1e999]", "[" * 100_000, "1" * 5000, b"\xff\xfe"],
    ids=["empty", "cut", "python", "nan", "infinity", "minus infinity", "too large", "deep", "long", "bytes"],
)
def test_what_is_no_json_is_refused_with_the_files_name(text: str | bytes) -> None:
    """NaN and infinity are Python's own additions; no other reader takes them."""
    with pytest.raises(InvalidFileError) as error:
        typed_json.parse(text, where=WHERE, remedy=AGAIN)
    assert error.value.what.startswith(f"{WHERE} is not JSON: ")
    assert error.value.remedy == AGAIN


def test_a_file_name_that_is_not_utf_8_survives() -> None:
    """On Linux a name is bytes; Python spells those that are no text as lone surrogates."""
    name = os.fsdecode(b"caf\xe9.png")
    item = Item(name)
    document = typed_json.parse(typed_json.to_text(item), where=WHERE, remedy=AGAIN)
    assert typed_json.convert(document, Item, where=WHERE, remedy=AGAIN) == item


@pytest.mark.parametrize(
    "path,value,said",
    [
        ("precision", "fp64", "precision: invalid enum value 'fp64'."),
        ("precision", 8, "precision: expected str, got int."),
        ("schema", 3, "schema: invalid enum value 3."),
        ("path", 5, "path: expected a path as text, got 5."),
        ("items", {}, "items: expected array, got object."),
        ("items.1", None, "items[1]: expected object, got null."),
        ("items.0.name", 5, "items[0].name: expected str, got int."),
        ("items.0.share", 1.5, "items[0].share: expected float <= 1.0."),
        ("items.0.count", -1, "items[0].count: expected int >= 0."),
        ("items.0.count", 0.5, "items[0].count: expected int | null, got float."),
        ("by_name.ort.name", None, "by_name[...].name: expected str, got null."),
        ("words.layer", 5, "words[...]: expected str, got int."),
        ("ms", 0, "ms: expected float >= 1e-09."),
        ("change", "fast", "change: expected float, got str."),
        ("change", 1e16, "change: expected float <= 1000000000000000.0."),
        ("precison", "int8", "the field precison is unknown."),
        ("items.1.nam", "", "the field items[1].nam is unknown."),
        ("by_name.ort.sare", 0, "the field by_name.ort.sare is unknown."),
    ],
)
def test_a_wrong_field_is_named_with_its_place(path: str, value: object, said: str) -> None:
    assert refused(with_change(path, value)) == said


@pytest.mark.parametrize(
    "path,said",
    [
        ("schema", "the field schema is missing."),
        ("precision", "the field precision is missing."),
        ("words", "the field words is missing."),
        ("items.0.name", "the field items[0].name is missing."),
        ("items.1.share", "the field items[1].share is missing."),
        ("by_name.ort.count", "the field by_name.ort.count is missing."),
    ],
)
def test_a_missing_field_is_named_whatever_its_default(path: str, said: str) -> None:
    """A default is for who makes the value, not for a file that lost it."""
    document = with_change(path, None)
    *above, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    holder: Any = document
    for step in above:
        holder = holder[step]
    del holder[last]
    assert refused(document) == said


def test_a_partial_document_takes_defaults_and_ignores_what_it_does_not_know() -> None:
    """Results of other tools and of earlier versions lack fields; what is there must still have its type."""
    document = {"precision": "int8", "items": [{"name": "first", "colour": "red"}], "later": 1}
    assert read(document, partial=True) == Whole(precision=Precision.INT8, items=(Item("first"),))
    assert refused({}, partial=True) == "the field precision is missing."
    assert refused({**document, "ms": "1"}, partial=True) == "ms: expected float | null, got str."


def test_what_a_type_itself_refuses_is_an_error_of_the_file() -> None:
    """The same words as for whoever builds it by hand, behind the file's name."""
    with pytest.raises(InvalidFileError) as error:
        read(with_change("words", {"": "x"}))
    assert error.value.what == f"{WHERE}: a word has no name."
    assert error.value.remedy == "Name it."
    assert error.value.exit_code == 3


@pytest.mark.parametrize("document", [None, 5, "x", [], [1]])
def test_a_document_of_another_kind_is_refused(document: object) -> None:
    assert refused(document).startswith("the document: expected object, got ")


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Whole)])
@given(value=ANY_JSON)
def test_no_value_of_a_field_breaks_the_reader(name: str, value: object) -> None:
    """A file may come from anywhere: it is read or refused, with nothing in between."""
    try:
        found = read(with_change(name, value))
    except InvalidFileError as error:
        assert error.what.startswith(WHERE)  # noqa: PT017 - either outcome is right
    else:
        written = json.loads(typed_json.to_text(found))[name]
        assert written == (value if name != "path" or value is None else str(Path(str(value))))
