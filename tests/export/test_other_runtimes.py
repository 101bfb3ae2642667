"""Every graph is parsed and built by the runtimes that users deploy to, at full size too."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import pytest
import tensorrt_rtx
import torch

from segdeploy import models
from segdeploy.export import to_onnx as export
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
AGREEING = 0.999  # of the pixels, OpenVINO against ONNX Runtime, untrained networks on noise; measured 1.0


def exported(folder: Path, name: str, size: tuple[int, int], variant: dict[str, Any]) -> Path:
    torch.manual_seed(0)
    network = models.build(name, CLASSES, **variant).eval()
    names = tuple(f"class_{index}" for index in range(CLASSES))
    colours = tuple((index, index, index) for index in range(CLASSES))
    spec = Spec(name, variant, names, colours, *size, margin=network.margin)
    return export.to_onnx(network, spec, folder / f"{name}.onnx", weights={}).path


def build_plan(path: Path) -> int:
    """Bytes of the plan that TensorRT-RTX builds of a graph, strongly typed, batch 1 to 8; no GPU is needed."""
    logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR)
    builder = tensorrt_rtx.Builder(logger)
    network = builder.create_network(1 << int(tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt_rtx.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(path))
    assert parsed, [str(parser.get_error(index)) for index in range(parser.num_errors)]
    images, class_map = network.get_input(0), network.get_output(0)
    assert images.dtype == class_map.dtype == tensorrt_rtx.DataType.UINT8
    profile = builder.create_optimization_profile()
    shape = tuple(images.shape)[1:]
    profile.set_shape(images.name, (1, *shape), (1, *shape), (8, *shape))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    return int(plan.nbytes)


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
