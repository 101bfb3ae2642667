"""Every graph is parsed and built by the runtimes that users deploy to, at full size too."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from conftest import INT8_SATURATES
from foreign_graphs import Foreign
from numpy.typing import NDArray
from rtx_builder import build_plan

import segdeploy
from segdeploy import arithmetic, fitting, images, models, workspace
from segdeploy.adopting.options import AdoptOptions
from segdeploy.checkpoints import checkpoint
from segdeploy.graphs import to_onnx as export
from segdeploy.graphs.graph import Graph
from segdeploy.origin import WeightsOrigin
from segdeploy.precision import fp16, int8
from segdeploy.quantization import calibration
from segdeploy.spec import Spec

CLASSES = 21
CASES: list[tuple[str, dict[str, Any], tuple[int, int]]] = [
    ("segnet", {}, (360, 480)),
    ("segnet", {"form": "basic"}, (360, 480)),
    ("unet", {}, (360, 480)),
    ("unet", {"form": "paper"}, (380, 492)),
    ("pspnet", {}, (360, 480)),
    ("deeplabv3", {}, (360, 480)),
    ("deeplabv3", {"head": "torchvision"}, (360, 480)),
]
FULL_SIZE = [case for case in CASES if not case[1]]
EXAMPLES = Path(__file__).parents[2] / "examples" / "nuclei" / "images"
AGREEING = 0.999  # of the pixels, OpenVINO against ONNX Runtime, untrained networks on noise; measured 1.0

LARGEST_PLAN = {"fp16": 0.6, "signed": 0.45}  # of the float32 file; measured up to 0.52 and 0.29
# Of the pixels, packaged U-Net, OpenVINO against the graph as it is written, over four sets of calibration images
# and two methods: signed 0.855 to 0.9947, unsigned 0.99997 to 1.0.
HAS_TILES = arithmetic.instruction_set() == "amx-int8"
SIGNED_IN_OPENVINO, UNSIGNED_IN_OPENVINO = 0.998, 0.9995
UNSIGNED_SATURATED = 0.998  # 0.99905 on a processor without VNNI


def exported(folder: Path, name: str, size: tuple[int, int], variant: dict[str, Any]) -> Path:
    torch.manual_seed(0)
    network = models.build(name, CLASSES, **variant).eval()
    names = tuple(f"class_{index}" for index in range(CLASSES))
    colours = tuple((index, index, index) for index in range(CLASSES))
    spec = Spec(name, variant, names, colours, *size, margin=network.margin)
    weights = WeightsOrigin(kind="random", sha256="0" * 64)
    return export.to_onnx(network, spec, folder / f"{name}.onnx", weights=weights).path


def converted(path: Path, kind: str) -> Path:
    """The fp16 graph, or the signed int8 one over ranges that a trained network might have."""
    model = onnx.load(path)
    graph = Graph(model)
    plausible = {name: (0.0 if graph.is_positive(name) else -6.0, 6.0) for name in int8.tensors(model)}
    low = fp16.to_half(model) if kind == "fp16" else int8.convert(model, plausible, form=kind)
    written = path.with_suffix(f".{kind}.onnx")
    onnx.save(low, written)
    return written


@pytest.mark.slow
@pytest.mark.parametrize("name,variant,size", CASES, ids=str)
def test_tensorrt_rtx_builds_the_full_size_network(
    name: str, variant: dict[str, Any], size: tuple[int, int], tmp_path: Path
) -> None:
    """SegNet with true unpooling included: the one no other tool deploys."""
    path = exported(tmp_path, name, size, variant)
    assert build_plan(path) > 0.5 * path.stat().st_size


@pytest.mark.parametrize("name", models.names())
def test_tensorrt_rtx_builds_the_small_network(name: str, tmp_path: Path) -> None:
    """At an odd size, which pads SegNet's pooling and crops U-Net's skips."""
    assert build_plan(exported(tmp_path, name, (45, 62), {"multiplier": 0.125}))


@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGEST_PLAN)
@pytest.mark.parametrize("name,variant,size", FULL_SIZE, ids=str)
def test_tensorrt_rtx_builds_small_plans_of_the_full_size_networks_in_low_precision(
    name: str, variant: dict[str, Any], size: tuple[int, int], kind: str, tmp_path: Path
) -> None:
    """A plan as large as the float32 one would hold float32 weights: the pairs were not taken."""
    path = exported(tmp_path, name, size, variant)
    assert build_plan(converted(path, kind)) <= LARGEST_PLAN[kind] * path.stat().st_size


@pytest.mark.parametrize("name", models.names())
def test_tensorrt_rtx_builds_the_small_networks_in_low_precision(name: str, tmp_path: Path) -> None:
    """Strongly typed: a cast that is missing is an error, and bytes still come in and go out."""
    path = exported(tmp_path, name, (45, 62), {"multiplier": 0.125})
    for kind in LARGEST_PLAN:
        assert build_plan(converted(path, kind))


@pytest.mark.parametrize("name", models.names())
def test_openvino_compiles_the_graph_and_draws_the_same_map(name: str, tmp_path: Path) -> None:
    """Two independent runtimes agree on the file; bf16 is off, for fp32 was asked."""
    path = exported(tmp_path, name, (45, 62), {"multiplier": 0.125})
    images = np.random.default_rng(0).integers(0, 256, (2, 45, 62, 3), dtype=np.uint8)
    compiled = openvino.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    expected = onnxruntime.InferenceSession(path).run(None, {"images": images})[0]
    found = compiled(images)[0]
    assert found.dtype == np.uint8
    assert np.mean(found == expected) >= AGREEING


@pytest.mark.skipif(HAS_TILES, reason="with AMX tiles OpenVINO runs the signed form exactly")
def test_openvino_does_not_run_the_signed_form_exactly() -> None:
    """Why its engine opens the unsigned form: of U-Net's signed one it makes other masks than the graph describes.

    Where the last line fails, a newer OpenVINO has mended it (2026.4 has not).
    """
    network, spec = checkpoint.load(workspace.PACKAGED / "unet.safetensors")
    model = export.to_graph(network, spec)
    seen, shown = (
        [fitting.prepared(images.read(path), spec)[None] for path in paths]
        for paths in (workspace.packaged_images()[::8], sorted(EXAMPLES.glob("*.png")))
    )
    ranges = calibration.collect(model, int8.tensors(model), lambda: seen).by("percentile")
    agreement = {form: openvino_agreement(int8.convert(model, ranges, form=form), shown) for form in int8.FORMS}
    assert agreement["unsigned"] >= (UNSIGNED_SATURATED if INT8_SATURATES else UNSIGNED_IN_OPENVINO)
    assert agreement["signed"] <= SIGNED_IN_OPENVINO


def openvino_agreement(model: onnx.ModelProto, pictures: list[NDArray[np.uint8]]) -> float:
    """With ONNX Runtime, which runs the graph node by node as it is written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return float(np.mean([compiled(image)[0] == session.run(None, {"images": image})[0] for image in pictures]))


@pytest.mark.parametrize("kind", ["fp32", "fp16", "signed"])
def test_tensorrt_rtx_builds_a_graph_of_somebody_else(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BGR, an output at half the size, a slash in every name: what is added takes part in the plan."""
    monkeypatch.chdir(tmp_path)
    theirs = Foreign(stride=2).save(tmp_path / "theirs.onnx")
    asked = AdoptOptions(preset="imagenet", channels="bgr")
    graph = segdeploy.adopt(theirs, name="theirs", options=asked).graph
    assert build_plan(graph.path if kind == "fp32" else converted(graph.path, kind)) > 0
