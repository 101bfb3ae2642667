"""A Spec says the same after a trip through a file, and holds nothing that a network cannot have."""

import dataclasses
import json
from typing import Any

import pytest
from conftest import SPEC
from hypothesis import given
from hypothesis import strategies as st

from segdeploy.errors import InvalidFileError, InvalidRequestError, SegdeployError
from segdeploy.spec import MAX_CLASSES, Spec

CHANNELS = st.tuples(*[st.floats(-4, 4)] * 3)
DEVIATIONS = st.tuples(*[st.floats(1e-9, 4)] * 3)
BYTES = st.integers(0, 255)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
LINES = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")))
OPTIONS = st.dictionaries(st.text(), st.text() | st.booleans() | st.integers() | FINITE)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    classes = draw(st.lists(LINES, min_size=1, max_size=8, unique=True))
    colours = [draw(st.tuples(BYTES, BYTES, BYTES)) for _ in classes]
    return Spec(
        draw(st.from_regex(r"net[A-Za-z0-9_-]{0,90}", fullmatch=True)),
        draw(OPTIONS),
        tuple(classes),
        tuple(colours),
        draw(st.integers(1, 8192)),
        draw(st.integers(1, 8192)),
        mean=draw(CHANNELS),
        std=draw(DEVIATIONS),
        ignore_index=draw(BYTES),
        margin=draw(st.integers(0, 200)),
        output=draw(st.sampled_from(["class_map", "logits"])),
        name=draw(st.sampled_from(["", "street", "night-2"])),
    )


@given(specs())
def test_a_spec_survives_json(spec: Spec) -> None:
    assert Spec.from_json(spec.to_json()) == spec


@given(specs())
def test_the_same_spec_is_the_same_text(spec: Spec) -> None:
    """Files are compared by their bytes."""
    shuffled = dict(reversed(list(dataclasses.asdict(spec).items())))
    assert Spec.from_dict(shuffled).to_json() == spec.to_json()


def test_the_name_is_the_models_unless_it_has_its_own() -> None:
    """Files that were written before a network had a name keep their bytes, and are read."""
    called = dataclasses.replace(SPEC, name="street")
    assert SPEC.name == SPEC.model == "unet"
    assert "name" not in json.loads(SPEC.to_json())
    assert Spec.from_json(SPEC.to_json()) == SPEC
    assert json.loads(called.to_json())["name"] == "street"
    assert Spec.from_json(called.to_json()) == called != SPEC


def test_as_many_classes_as_a_byte_can_name_are_accepted() -> None:
    names = tuple(f"class_{index}" for index in range(MAX_CLASSES))
    colours = tuple((index, 0, 0) for index in range(MAX_CLASSES))
    assert len(dataclasses.replace(SPEC, classes=names, colours=colours).classes) == 256


def test_a_class_may_have_any_name_of_one_line() -> None:
    """It stands in tables and pages, and is part of no path."""
    names = ("road / rail", "ö \u200d \u3000", "../..", "")
    spec = dataclasses.replace(SPEC, classes=names, colours=((0, 0, 0),) * 4)
    assert Spec.from_json(spec.to_json()).classes == names


@pytest.mark.parametrize(
    "changes,reason",
    [
        ({"classes": (), "colours": ()}, "0 classes; a class map holds 1 to 256"),
        (
            {"classes": tuple(f"class_{index}" for index in range(257)), "colours": ((0, 0, 0),) * 257},
            "257 classes; a class map holds 1 to 256",
        ),
        ({"classes": ("thing", "thing")}, "two classes have the same name"),
        ({"classes": ("sky", "a\nb")}, "the class 'a\\nb' has a control character in its name"),
        ({"classes": ("sky", "a\x1b[2J")}, "the class 'a\\x1b[2J' has a control character in its name"),
        ({"classes": ("sky", "a\0")}, "the class 'a\\x00' has a control character in its name"),
        ({"classes": ("sky", "a\u2028b")}, "the class 'a\\u2028b' has a control character in its name"),
        ({"model": "../unet"}, "the network is named '../unet', which is no plain name"),
        ({"name": "../street"}, "the network is named '../street', which is no plain name"),
        ({"model": ""}, "the network is named '', which is no plain name"),
        ({"colours": ((0, 0, 0),)}, "2 classes but 1 colours"),
        ({"colours": ((0, 0, 0), (0, 256, 0))}, "a colour has a value outside 0..255"),
        ({"colours": ((0, 0, 0), (0, -1, 0))}, "a colour has a value outside 0..255"),
        ({"height": 0}, "the network size 0x64 is empty"),
        ({"width": -3}, "the network size 64x-3 is empty"),
        ({"height": 8193, "width": 8192}, "the network size 8193x8192 is above 67,108,864 pixels"),
        ({"variant": {"dropout": float("inf")}}, "an option of the network is not a number: {'dropout': inf}"),
        ({"variant": {"dropout": float("nan")}}, "an option of the network is not a number: {'dropout': nan}"),
        ({"mean": (0.5, 0.5)}, "the means (0.5, 0.5) are not three numbers"),
        ({"mean": (0.5, 0.5, float("nan"))}, "are not three numbers"),
        ({"std": (0.2, 0.0, 0.2)}, "the standard deviations (0.2, 0.0, 0.2) are not three numbers above 0"),
        ({"std": (0.2, float("nan"), 0.2)}, "are not three numbers above 0"),
        ({"std": ()}, "are not three numbers above 0"),
        ({"ignore_index": 256}, "the index to ignore is 256"),
        ({"output": "masks"}, "the output 'masks' is unknown"),
    ],
)
def test_what_no_network_can_have_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        dataclasses.replace(SPEC, **changes)
    assert reason in refused.value.what
    assert refused.value.remedy


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        '"spec"',
        "{}",
        "[" * 100_000,
        '{"classes": 5}',
        SPEC.to_json().replace("{", '{"x":1,', 1),
    ],
)
def test_foreign_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidFileError):
        Spec.from_json(text)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Spec)])
@given(value=ANY_JSON)
def test_no_value_of_a_field_breaks_the_reader(name: str, value: object) -> None:
    """A file may come from anywhere: it is read or refused, with nothing in between."""
    fields = {**json.loads(SPEC.to_json()), name: value}
    try:
        spec = Spec.from_json(json.dumps(fields))
    except SegdeployError:
        return
    assert isinstance(spec.height, int)
    assert isinstance(spec.variant, dict)
    assert all(isinstance(name, str) for name in spec.classes)


@given(ANY_JSON)
def test_no_document_breaks_the_reader(document: object) -> None:
    with pytest.raises(InvalidFileError):
        Spec.from_json(json.dumps(document))
