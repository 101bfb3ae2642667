"""A mistyped field of a manifest, a missing one, an unknown one: each is refused by its name, in every kind of file."""

import copy
import dataclasses
import enum
import json
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import SPEC
from hypothesis import given, settings
from hypothesis import strategies as st

from segdeploy import artifact
from segdeploy.artifact import Artifact
from segdeploy.certificate import Certificate, Departure, Stage, WorstImage
from segdeploy.errors import InvalidFileError
from segdeploy.low_precision import Budget, Executed, LowPrecision
from segdeploy.origin import (
    Calibration,
    ForeignOrigin,
    GraphOrigin,
    GraphReading,
    ModuleSource,
    Origin,
    Preprocessing,
    ProofPicture,
    TrainingOrigin,
    ValidationFolder,
    ValidationPicture,
    WeightsOrigin,
)
from segdeploy.proof import limits
from segdeploy.spec import Precision, Spec
from segdeploy.target import BuildOptions, PlanFacts, Target, TypedNetwork

MANIFEST = Path("export/unet.fp32.onnx.json")
SHA256 = "0123456789abcdef" * 4
STAGE = Stage(
    name="graph",
    runtime="ort",
    device="cpu",
    runtime_version="1.32.0",
    hardware="avx2",
    passed=False,
    reason="too few pixels agree",
    not_finite="a.png, from down.0/Conv on",
    agreement=0.5,
    decided_agreement=0.5,
    near_ties=0.125,
    pool_ties=0.0,
    unexplained=0.25,
    miou_change=-1.5,
    miou_change_by_class={"ground": -2.5, "thing": None},
    pixels=100,
    differing_pixels=50,
    boundary_agreement=0.5,
    interior_agreement=0.75,
    boundary_f1=0.5,
    class_agreement={"ground": 0.5, "thing": None},
    worst_images=(WorstImage(image="a.png", agreement=0.5, differing_pixels=50, boundary_share=0.5),),
)
DEPARTURE = Departure(
    stage="graph",
    kind="layer",
    layer="down.0/Conv",
    between=("down.0/Conv", "down.1/Conv"),
    error=0.5,
    tolerance=0.001,
    image="a.png",
    layers_compared=3,
    text="down.0/Conv departs.",
)
CERTIFICATE = Certificate(
    model="unet",
    precision=Precision.FP32,
    form="signed",
    weights="file",
    gated=True,
    passed=False,
    first_failing_stage="graph",
    proven_to="graph",
    images=2,
    images_sha256=SHA256,
    inconclusive="one class everywhere would pass",
    stages=(STAGE, Stage(name="engine", reason="no runtime runs it here")),
    limits=limits.FLOAT32,
    departure=DEPARTURE,
)
FOLDER = ValidationFolder(path="../data", layout="voc")
VALIDATION = ValidationPicture(image="a.png", image_sha256=SHA256, mask="m.png", mask_sha256=SHA256)
ORIGIN = Origin(
    command="export",
    version="0",
    weights=WeightsOrigin(kind="file", sha256=SHA256, path="../checkpoints/unet.safetensors"),
    graph=GraphOrigin(path="unet.fp32.onnx", sha256=SHA256),
    calibration=Calibration(
        method="percentile",
        images={"a.png": SHA256},
        skipped={"b.png": "it is no image"},
        cache={"unet.cache": SHA256},
    ),
    opset=20,
    torch="2.13.0",
    training=TrainingOrigin(
        epoch=3, val_miou=0.5, plan={"epochs": 9}, best=0.75, validation=(VALIDATION,), folder=FOLDER
    ),
    foreign=ForeignOrigin(
        kind="torch.export",
        path="../theirs.onnx",
        sha256=SHA256,
        reading=GraphReading(
            input="input",
            layout="NCHW",
            dtype="float32",
            preprocessing=Preprocessing(scale=0.5, mean=(0.25, 0.5, 0.75), deviation=(1.0, 2.0, 3.0)),
            output="logits",
            axes="NKHW",
            kind="one channel",
            threshold=0.5,
            values=(0, 255),
        ),
        notes=("one channel of logits: class 1 above 0.5",),
        pictures=(ProofPicture(image="a.png", image_sha256=SHA256, mask="b.png", mask_sha256=SHA256),),
        built_from=ModuleSource(named="mine:build", path="../weights.pth", sha256=SHA256),
    ),
)
EXECUTED = Executed(delivered=Precision.INT8, delivered_share=0.9, wider=("down.0/Conv",), reason="it was looked into")
LOW_PRECISION = LowPrecision(
    budget=Budget(0.98, 0.5),
    in_float={"down.0/Conv": "gives accuracy back"},
    low_share=0.9,
    asked={"int8": 0.9, "fp32": 0.1},
    executed={"ort": EXECUTED},
)
PLAN = PlanFacts(
    runtime="trt",
    runtime_version="10",
    system="Linux x86_64",
    target=Target("8.9", "a GPU", "590.1", "13.0"),
    size=100,
    options=BuildOptions(workspace_mb=64, timing_cache=Path("trt.cache"), compute_capability="8.9"),
    timing_cache_sha256=SHA256,
    calibration_sha256=SHA256,
    asked={"int8": 1.0},
    typed=TypedNetwork(work={"int8": 1.0}, tensors={"int8": 3}),
    executed=EXECUTED,
)
GRAPH = Artifact(
    path=MANIFEST.with_suffix(""),
    kind="graph",
    precision=Precision.FP32,
    form="signed",
    spec=SPEC,
    sha256=SHA256,
    made_at="2026-01-01T00:00:00.000+00:00",
    origin=ORIGIN,
    certificate=CERTIFICATE,
    certificate_as_asked=CERTIFICATE,
)
FILES = {
    "a graph of fp32": GRAPH,
    "a graph of int8": dataclasses.replace(GRAPH, precision=Precision.INT8, low_precision=LOW_PRECISION),
    "a plan": dataclasses.replace(GRAPH, kind="plan", plan=PLAN),
}
FULL = dataclasses.replace(GRAPH, low_precision=LOW_PRECISION, plan=PLAN)

Kind = type[Any]
KINDS: dict[Kind, st.SearchStrategy[Any]] = {
    type(None): st.none(),
    bool: st.booleans(),
    int: st.integers(-(2**53), 2**53),
    float: st.floats(-1e6, 1e6).filter(lambda number: not number.is_integer()),
    str: st.text(),
    list: st.lists(st.integers(), max_size=2),
    dict: st.dictionaries(st.text(), st.integers(), max_size=2),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands in the document, the types of JSON that it may have, and what an error calls it.

    `is_field`: it is no entry of a mapping or a list.
    """

    path: tuple[str | int, ...]
    kinds: frozenset[Kind]
    name: str
    is_field: bool
    of: str = ""  # the part that is read by itself

    def named_in(self, said: str, sentence: str) -> bool:
        """Whether an error says a sentence of this field; what lies inside a mapping may be named without its key."""
        keyed = ".".join(map(str, self.path))
        names = {self.name, keyed} if "[...]" in self.name else {self.name}
        return any(f"{MANIFEST}: {self.of}{sentence.format(name)}" in said for name in names)


def kinds_of(hint: Any) -> frozenset[Kind]:  # noqa: ANN401 - a type
    """The types of JSON that a type is written as."""
    origin = typing.get_origin(hint)
    if origin in {typing.Union, types.UnionType}:
        return frozenset().union(*map(kinds_of, typing.get_args(hint)))
    if origin is typing.Literal:
        return frozenset(type(value) for value in typing.get_args(hint))
    if dataclasses.is_dataclass(hint) or origin in {dict, Mapping}:
        return frozenset({dict})
    if isinstance(hint, enum.EnumMeta):
        return frozenset({str})
    plain: dict[Any, set[Kind]] = {Any: {*KINDS}, Path: {str}, float: {int, float}}
    return frozenset({list} if origin is tuple else plain.get(hint, {hint}))


def described_by(hint: Any, value: object) -> Any:  # noqa: ANN401 - a type
    """The part of a union that a value of JSON is of."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in {typing.Union, types.UnionType} else (hint,)
    return next(part for part in parts if type(value) in kinds_of(part))


def places(hint: Any, value: Any, path: tuple[str | int, ...] = (), name: str = "") -> Iterator[Place]:  # noqa: ANN401
    """Every value below one, with its type as the dataclasses have it."""
    hint = described_by(hint, value)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        below = [(key, hints[key], f"{name}.{key}".removeprefix("."), True) for key in value]
    elif isinstance(value, dict):
        of_entries = (*typing.get_args(hint), Any)[1]
        below = [(key, of_entries, f"{name}[...]", False) for key in value]
    elif isinstance(value, list):
        of_items = typing.get_args(hint)[0]
        below = [(index, of_items, f"{name}[{index}]", False) for index in range(len(value))]
    else:
        return
    for key, its, called, is_field in below:
        yield Place((*path, key), kinds_of(its), called, is_field)
        if its is not Any:
            yield from places(its, value[key], (*path, key), called)


def document(file: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(artifact.manifest(file))
    return found


def places_in(file: Artifact) -> list[Place]:
    """The fields of a manifest; its Spec is one with a type as well."""
    whole = document(file)
    found = list(places(artifact._Manifest, whole))  # noqa: SLF001 - the fields as they are declared
    spec = [dataclasses.replace(each, path=("spec", *each.path), of="spec: ") for each in places(Spec, whole["spec"])]
    return [each for each in found if each.path[:1] != ("spec",) or len(each.path) == 1] + spec


def holder_of(whole: Any, place: Place) -> Any:  # noqa: ANN401 - an object or a list of JSON
    for key in place.path[:-1]:
        whole = whole[key]
    return whole


def refused(whole: object) -> str:
    """What is said of a manifest that is none."""
    with pytest.raises(InvalidFileError) as error:
        artifact.described(MANIFEST.with_suffix(""), json.dumps(whole).encode())
    assert error.value.exit_code == 3
    assert error.value.remedy
    return error.value.what


files = pytest.mark.parametrize("file", FILES.values(), ids=FILES)


@files
def test_the_whole_manifest_is_read(file: Artifact) -> None:
    """Else every refusal below could have another cause."""
    assert artifact.described(file.path, artifact.manifest(file)) == file


def test_between_them_the_files_have_a_value_in_every_field() -> None:
    """A field that is None in all of them would have been tried with half of its types."""
    whole = document(FULL)
    empty = [place.name for place in places_in(FULL) if holder_of(whole, place)[place.path[-1]] is None]
    of_other_stage = [name for name in empty if ".stages[1]." in name]
    of_mappings = [name for name in empty if name.endswith("[...]")]
    assert set(empty) == {*of_other_stage, *of_mappings}


@files
def test_a_missing_field_is_named(file: Artifact) -> None:
    """At any depth, whether it has a default or not."""
    fields = [place for place in places_in(file) if place.is_field]
    assert len(fields) > 70
    for place in fields:
        whole = document(file)
        del holder_of(whole, place)[place.path[-1]]
        assert place.named_in(refused(whole), "the field {} is missing."), place


@files
def test_an_unknown_field_is_named(file: Artifact) -> None:
    """A field that was mistyped is unknown under its wrong name."""
    for place in places_in(file):
        if not place.is_field:
            continue
        whole = document(file)
        holder = holder_of(whole, place)
        wrong = f"{place.path[-1]}_"
        holder[wrong] = copy.deepcopy(holder[place.path[-1]])
        assert place.named_in(refused(whole), "the field {}_ is unknown."), place


@files
@settings(max_examples=300)
@given(data=st.data())
def test_a_value_of_another_type_is_refused_by_the_name_of_its_field(file: Artifact, data: st.DataObject) -> None:
    """Whatever stands there instead: what reads a manifest later trusts the types."""
    place = data.draw(st.sampled_from([place for place in places_in(file) if place.kinds != frozenset(KINDS)]))
    other = data.draw(st.sampled_from([kind for kind in KINDS if kind not in place.kinds]))
    whole = document(file)
    holder_of(whole, place)[place.path[-1]] = data.draw(KINDS[other])
    assert place.named_in(refused(whole), "{}: ")
