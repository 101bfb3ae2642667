"""A result is read as it was written, or refused with the field that is wrong; files of 0.1 are still read."""

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import result_files as made
from hypothesis import given
from hypothesis import strategies as st
from result_files import Document

from segdeploy import typed_json
from segdeploy.errors import InvalidFileError
from segdeploy.low_precision import Budget
from segdeploy.timing import results
from segdeploy.timing.result_types import Memory, Result

HERE = Path(__file__).parent
OF_0_1 = HERE / "earlier_result.json"  # `bench --save` of 0.1, with three engines in two runtimes
OF_PEERS = HERE.parent.parent / "benchmarks/peers_speed.json"
BY_NAME = {
    *("packages", "in_float", "asked", "iou_by_class", "class_agreement", "miou_change_by_class"),
    *("masks", "agreement"),
}  # objects whose names are data; a number may be called agreement too
INTERVALS = {"interval", "median_interval"}
Place = tuple[str | int, ...]


def whole() -> Document:
    """A result in which every part is there: each optional object, and one of each list."""
    document = made.document("unet", pictures=1)
    document["machine"]["gpu"] = {
        "name": "Fake RTX 1",
        "compute_capability": "8.9",
        "memory_mb": 8192,
        "driver": "590.1",
        "cuda": "13.1",
    }
    document["conditions"]["gpu"] = {"clock_mhz": 1500.0, "temperature_c": 61.0, "throttle_reasons": ["its hardware"]}
    document["skipped"] = [{"engine": "trt:fp16", "reason": "there is no GPU"}]
    document["failures"] = [{"what": "ort:int8 is slow.", "remedy": "Use fp32."}]
    compared = {
        "subject": "unet ort:int8 cpu",
        "level": "host",
        "batch": 1,
        "ratio": 1.12,
        "interval": made.interval(1.1, 1.14),
    }
    row = {**compared, "reason": None, "comparable": True, "regression": True}
    document["comparison"] = {"with": "old.json", "max_regression": 0.05, "rows": [row]}
    document["subjects"][2]["certificate"]["departure"] = {
        "stage": "engine",
        "kind": "layer",
        "layer": "stem",
        "between": ["a"],
        "error": 0.5,
        "tolerance": 0.001,
        "image": "a.png",
        "layers_compared": 20,
        "text": "The first layer that departs is stem.",
    }
    return document


def places(value: object, place: Place = ()) -> Iterator[Place]:
    """Every field of every object whose fields the schema names; of a list, those of its first three items."""
    if isinstance(value, dict) and not (place and place[-1] in BY_NAME):
        for name, inner in value.items():
            yield (*place, name)
            yield from places(inner, (*place, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value[:3]):
            yield from places(inner, (*place, index))


def spelled(place: Place) -> str:
    """`subjects[0].miou`, as an error names it."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


WHOLE = json.loads(json.dumps(whole()))  # no part of it stands in two places
PLACES = sorted(set(places(WHOLE)), key=spelled)
FIELDS = st.sampled_from(PLACES)


def damaged(place: Place, damage: Any) -> Document:  # noqa: ANN401 - a callable over any JSON object
    """A copy of the whole result, whose object around that field was damaged."""
    document: Document = copy.deepcopy(WHOLE)
    inner: Any = document
    for part in place[:-1]:
        inner = inner[part]
    damage(inner, place[-1])
    return document


def refusal(document: Document, folder: Path) -> str:
    path = folder / "damaged.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidFileError) as refused:
        results.read(path)
    assert str(path) in refused.value.what
    return refused.value.what


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


def test_the_whole_result_is_read_and_written_again_as_it_was(folder: Path) -> None:
    """Every field of the schema is in it, or the tests below would not reach that field."""
    path = folder / "whole.json"
    path.write_text(json.dumps(WHOLE))
    found = results.read(path)
    assert json.loads(typed_json.to_text(found)) == WHOLE
    assert {place[-1] for place in PLACES} >= {field.name for field in dataclasses.fields(Result)}
    assert any(subject.certificate and subject.certificate.departure for subject in found.subjects)


@given(FIELDS)
def test_a_field_that_is_missing_is_named_with_the_file(folder: Path, place: Place) -> None:
    what = refusal(damaged(place, lambda inner, name: inner.pop(name)), folder)
    if place in {("schema",), ("kind",)}:  # they say which fields there are
        assert place[-1] in what
    else:
        assert f"the field {spelled(place)} is missing" in what


@given(FIELDS)
def test_a_field_that_is_unknown_is_named_with_the_file(folder: Path, place: Place) -> None:
    """A misspelled field would otherwise be one that is absent, and nobody would see it."""
    unknown = (*place[:-1], "another")
    what = refusal(damaged(place, lambda inner, _: inner.update(another=1)), folder)
    assert f"the field {spelled(unknown)} is unknown" in what


@given(FIELDS, st.sampled_from([[[{"strange": 1}]], {"strange": [[1]]}, [[]]]))
def test_a_field_of_another_type_is_named_with_the_file(folder: Path, place: Place, value: object) -> None:
    what = refusal(damaged(place, lambda inner, name: inner.update({name: value})), folder)
    assert spelled(place) in what


@pytest.mark.parametrize("number", [-0.1, 1.1, 1e300])
def test_a_share_outside_0_to_1_is_refused(folder: Path, number: float) -> None:
    for place in PLACES:
        if place[-1] in {"miou", "delivered_share", "share", "low_share", "decided_agreement", "boundary_share"}:
            what = refusal(damaged(place, lambda inner, name: inner.update({name: number})), folder)
            assert spelled(place) in what


# Files of 0.1


def test_a_result_of_0_1_is_read_whole() -> None:
    """Written by `bench --save` of that version: certificates, a search, a profile, a comparison and pictures."""
    found, document = results.read(OF_0_1), json.loads(OF_0_1.read_bytes())
    assert [subject.id for subject in found.subjects] == [subject["id"] for subject in document["subjects"]]
    fp32, torch, int8, ov = found.subjects
    assert torch.certificate is None
    for subject, before in zip((fp32, int8, ov), document["subjects"][:1] + document["subjects"][2:], strict=True):
        proof = subject.certificate
        assert proof is not None
        assert (proof.model, proof.precision, proof.form) == ("unet", subject.precision, subject.form)
        assert proof.engine is not None
        assert proof.engine.agreement == subject.agreement == before["certificate"]["stages"][-1]["agreement"]
    assert int8.search is not None
    assert int8.search.budget == Budget(min_agreement=0.9, max_drop=20)
    assert [step.low_share for step in int8.search.steps] == [1.0]
    assert fp32.profile
    assert fp32.profile[0].layer == document["subjects"][0]["profile"][0]["layer"]
    assert found.comparison is not None
    assert [row.comparable for row in found.comparison.rows] == [False] + 6 * [True]
    assert [picture.name for picture in found.pictures] == ["2.png", "0.png"]
    assert [row.latency_ms.median for row in found.rows] == [row["latency_ms"]["median"] for row in document["rows"]]


def test_nothing_of_a_result_of_0_1_is_lost() -> None:
    """Read and written again, it says the same, but for the schema, its intervals and what has another name today."""
    found = typed_json.to_builtins(results.read(OF_0_1))
    assert contains(found, json.loads(OF_0_1.read_bytes()), besides={"schema", "narrow_share", *INTERVALS})


def contains(found: Any, expected: Any, *, besides: set[str]) -> bool:  # noqa: ANN401 - two JSON values
    """Whether all that is expected is there: nulls count as absent."""
    if isinstance(expected, dict):
        return all(
            name in besides or value is None or contains(found[name], value, besides=besides)
            for name, value in expected.items()
        )
    if isinstance(expected, list):
        pairs = zip(found, expected, strict=True)
        return all(contains(each, other, besides=besides) for each, other in pairs)
    return bool(found == expected)


def test_the_intervals_of_0_1_are_not_shown() -> None:
    """They held the median less often than 95 times in 100, and their samples were not kept."""
    found, document = results.read(OF_0_1), json.loads(OF_0_1.read_bytes())
    assert document["rows"][0]["median_interval"]
    assert {row.median_interval for row in found.rows} == {None}
    assert {ratio.interval for ratio in found.ratios} == {None}
    assert found.comparison is not None
    assert {row.interval for row in found.comparison.rows} == {None}


def test_the_published_peers_are_read_and_say_what_their_intervals_assume() -> None:
    """Six or twelve rounds of each."""
    found = results.read(OF_PEERS)
    assert (len(found.subjects), len(found.rows)) == (36, 144)
    assert {subject.memory for subject in found.subjects} == {Memory()}
    assert {row.runs for row in found.rows} == {6, 12}
    assert all(row.median_interval and row.median_interval.assumes_independent for row in found.rows)


@pytest.mark.parametrize("part", ["memory", "in_float", "wider", "classes", "peer", "certificate", "search", "profile"])
def test_null_meant_absent_in_0_1(folder: Path, part: str) -> None:
    document = json.loads(OF_0_1.read_bytes())
    null, absent = folder / "null.json", folder / "absent.json"
    for each in document["subjects"]:
        each[part] = None
    null.write_text(json.dumps(document))
    for each in document["subjects"]:
        del each[part]
    absent.write_text(json.dumps(document))
    assert results.read(null) == results.read(absent)


@pytest.mark.parametrize(
    "place,value,what",
    [
        (("rows", 0, "latency_ms", "median"), "fast", "rows[0].latency_ms.median: expected float, got str"),
        (("subjects", 0, "certificate", "stages", 0, "agreement"), 2, "certificate.stages[0].agreement"),
        (("subjects", 0, "certificate", "precision"), "int4", "subjects[0].certificate.precision"),
        (("subjects", 2, "search", "steps", 0, "narrow_share"), None, "subjects[2].search.steps[0].low_share"),
        (("subjects", 0, "certificate"), [1], "subjects[0].certificate: expected object"),
        (("subjects",), {"a": 1}, "subjects: expected array"),
        (("subjects", 0), 3, "subjects[0]: expected object"),
        (("machine",), "AMD", "machine: expected object"),
    ],
)
def test_a_wrong_field_of_a_result_of_0_1_is_named(folder: Path, place: Place, value: object, what: str) -> None:
    document = json.loads(OF_0_1.read_bytes())
    inner = document
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    assert what in refusal(document, folder)


def test_a_name_that_is_not_utf_8_is_read_back(folder: Path) -> None:
    """Linux' file names are bytes; what is no UTF-8 stands in JSON as half a surrogate pair."""
    document = whole()
    document["pictures"][0]["name"] = document["subjects"][0]["path"] = "caf\udce9.png"
    path = folder / "bytes.json"
    path.write_text(json.dumps(document))
    found = results.read(path)
    assert found.pictures[0].name == found.subjects[0].path == "caf\udce9.png"
    assert json.loads(typed_json.to_text(found)) == document
