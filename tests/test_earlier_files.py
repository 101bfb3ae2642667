"""What segdeploy 0.1 wrote is still read: its manifests, shortened in `earlier_files/`, and its checkpoints."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SPEC
from hypothesis import given
from hypothesis import strategies as st

from segdeploy import artifact, workspace
from segdeploy.certificate import Limits, WorstImage
from segdeploy.checkpoints import checkpoint
from segdeploy.errors import InvalidFileError
from segdeploy.low_precision import Budget, Executed, LowPrecision
from segdeploy.origin import Calibration, GraphOrigin, Origin, TrainingOrigin, WeightsOrigin
from segdeploy.proof import limits
from segdeploy.spec import Precision
from segdeploy.target import BuildOptions, PlanFacts, Target, TypedNetwork

FOLDER = Path(__file__).with_name("earlier_files")
FILES = sorted(path.name for path in FOLDER.glob("*.json"))
UNET = WeightsOrigin(
    kind="packaged",
    sha256="f3f6bbcfc398ffbfec763ef053f3b3dec02d93b24111373b8553e60c64f696f5",
    path="unet.safetensors",
)
IMAGES = {
    "077f026f4ab0f0bc.png": "f73a83cbd9eadda0fb261e0e86528690a5752afab13c70d47626bfde3869698c",
    "0d2bf916cc8de90d.png": "a6ee5b30193280549a5a41b092e37764bd953913b24c8458fc364520f9984646",
}
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)


def read(name: str) -> artifact.Artifact:
    return artifact.read_manifest(FOLDER / name)


@pytest.mark.parametrize("name", FILES)
def test_a_manifest_of_0_1_is_read_and_written_as_one_of_today(name: str, tmp_path: Path) -> None:
    found = read(name.removesuffix(".json"))
    document = json.loads((FOLDER / name).read_bytes())
    assert document["schema"] == 1
    assert (found.sha256, found.made_at) == (document["sha256"], document["made_at"])
    assert (found.kind, found.precision, found.form) == (document["kind"], document["precision"], document["form"])
    assert found.spec.classes == ("background", "nucleus")
    moved = dataclasses.replace(found, path=tmp_path / found.path.name)
    artifact.write_manifest(moved)
    assert json.loads(artifact.manifest_path(moved.path).read_bytes())["schema"] == artifact.SCHEMA
    assert artifact.read_manifest(moved.path) == moved


def test_a_float32_graph_keeps_its_origin_and_its_proof() -> None:
    found = read("unet.fp32.onnx")
    assert found.origin == Origin(command="export", version="0.1.0", weights=UNET, opset=20, torch="2.13.0+cpu")
    assert (found.low_precision, found.plan) == (None, None)
    assert found.certificate is not None
    assert found.certificate.limits == limits.FLOAT32
    assert (found.certificate.passed, found.certificate.weights, found.certificate.images) == (True, "packaged", 32)
    assert [(stage.name, stage.runtime, stage.agreement) for stage in found.certificate.stages] == [
        ("graph", "ort", 1.0),
        ("engine", "ort", 1.0),
    ]
    assert found.certificate.stages[0].class_agreement == {"background": 1.0, "nucleus": 1.0}


def test_a_graph_of_int8_keeps_its_calibration_and_what_runtimes_make_of_it() -> None:
    found = read("unet.int8-unsigned.onnx")
    graph = GraphOrigin(
        path="unet.fp32.onnx", sha256="4c542402eca740b1275218377b40b67423a1e2a918a847247b332700a14857a3"
    )
    calibration = Calibration(method="percentile", images=IMAGES)
    assert found.origin == Origin(command="export", version="0.1.0", weights=UNET, graph=graph, calibration=calibration)
    of_ort = Executed(
        delivered=Precision.INT8, delivered_share=0.9991865992221856, wider=("classifier/Conv",), reason=None
    )
    assert found.low_precision == LowPrecision(
        budget=Budget(0.98, 0.5),
        in_float={},
        low_share=1.0,
        asked={"int8": 1.0},
        executed={"ort": of_ort, "ov": Executed(delivered=Precision.INT8, delivered_share=1.0)},
    )
    assert found.certificate is not None
    assert found.certificate.limits == Limits(min_agreement=0.98, max_drop=0.5)
    (worst,) = found.certificate.stages[2].worst_images
    assert worst == WorstImage(
        image="4193474b2f1c72f7.png",
        agreement=0.9823455810546875,
        differing_pixels=1157,
        boundary_share=0.9878997407087294,
    )


def test_a_graph_of_fp16_keeps_the_layers_that_stay_in_float32() -> None:
    found = read("segnet.fp16.onnx")
    assert found.origin.calibration == Calibration(method="extremes", images=IMAGES)
    assert found.low_precision is not None
    assert found.low_precision.in_float == dict.fromkeys(
        ("deployed/Mul", "deployed/Sub", "encoder.0.0.conv/Conv"), "gives accuracy back"
    )
    assert found.low_precision.low_share == found.low_precision.asked["fp16"] == 0.9870094722598105
    assert found.low_precision.executed["ov"].delivered is Precision.FP32


def test_a_plan_keeps_what_it_is_for_and_how_it_was_built() -> None:
    found = read("unet.trt-rtx.fp16.cc89.plan")
    graph = GraphOrigin(
        path="../export/unet.fp16.onnx", sha256="f98a2ea90f68bb80daa20c819e3d5d2ddc6f974d6d2ede9a054bd87121c5b1a2"
    )
    assert found.origin == Origin(
        command="build", version="0.1.0", weights=dataclasses.replace(UNET, path=None), graph=graph
    )
    assert found.low_precision is None
    assert found.plan == PlanFacts(
        runtime="trt-rtx",
        runtime_version="1.7.1.116",
        system="Linux x86_64",
        target=Target("8.9"),
        size=2838924,
        options=BuildOptions(max_batch=8, opt_batch=1, compute_capability="8.9"),
        timing_cache_sha256=None,
        calibration_sha256=None,
        asked={"fp16": 1.0},
        typed=TypedNetwork(work={"fp16": 1.0}, tensors={"fp16": 55, "fp32": 3, "int32": 2, "int64": 3, "uint8": 1}),
        executed=Executed(
            delivered=None,
            delivered_share=None,
            reason="an engine is inspected on a GPU of its own kind, and there is none here",
        ),
    )
    assert found.certificate is not None
    assert found.certificate.proven_to == "graph"
    assert found.certificate.stages[2].reason == "there is no GPU of compute capability 8.9 here"


def test_the_packaged_checkpoints_are_of_0_1_and_keep_their_training() -> None:
    header = (workspace.PACKAGED / "unet.safetensors").read_bytes()[:4000]
    assert b'"made_by"' in header
    found = checkpoint.read(workspace.PACKAGED / "unet.safetensors")
    assert found.made_at == "2026-11-22T19:25:56.771+00:00"
    assert (found.origin.command, found.origin.version) == ("train", "0.1.0")
    training = found.origin.training
    assert training is not None
    assert (training.epoch, training.val_miou, training.plan["learning_rate"]) == (30, 0.8967026649778864, 0.003)


def test_a_checkpoint_that_0_1_made_of_random_weights_still_says_so(tmp_path: Path) -> None:
    """It is timed and judges nothing; what training resumed from kept the best score so far."""
    import torch
    from safetensors.torch import save_file

    made_by = {"command": "random", "made_at": "2026-01-01T00:00:00.000+00:00", "version": "0.1.0"}
    for facts in (made_by, {**made_by, "command": "train", "epoch": 3, "val_miou": 0.25, "best": 0.5, "plan": {}}):
        path = tmp_path / f"{facts['command']}.safetensors"
        metadata = {"format": checkpoint.FORMAT, "spec": SPEC.to_json(), "made_by": json.dumps(facts)}
        save_file({"weight": torch.zeros(1)}, path, metadata)
    found, trained = (checkpoint.read(tmp_path / f"{name}.safetensors") for name in ("random", "train"))
    assert found.has_random_weights
    assert found.made_at == made_by["made_at"]
    assert trained.origin.training == TrainingOrigin(epoch=3, val_miou=0.25, best=0.5, plan={})


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401 - any JSON value
    """Where values stand in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
def test_no_value_in_a_manifest_of_0_1_breaks_the_reader(name: str, data: st.DataObject) -> None:
    """It is read, or refused with the manifest's name."""
    document = json.loads((FOLDER / name).read_bytes())
    *above, key = data.draw(st.sampled_from(list(places(document))))
    holder = document
    for step in above:
        holder = holder[step]
    holder[key] = data.draw(ANY_JSON)
    path = FOLDER / name.removesuffix(".json")
    try:
        artifact.described(path, json.dumps(document).encode())
    except InvalidFileError as error:
        assert name in error.what  # noqa: PT017 - either outcome is right
