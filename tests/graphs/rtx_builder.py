"""TensorRT-RTX's real builder, which needs no GPU."""

from pathlib import Path

import onnx
import tensorrt_rtx


def build_plan(graph: Path | onnx.ModelProto) -> int:
    """Bytes of the plan that TensorRT-RTX builds of a graph, strongly typed, batch 1 to 8; no GPU is needed."""
    logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR)
    builder = tensorrt_rtx.Builder(logger)
    network = builder.create_network(1 << int(tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt_rtx.OnnxParser(network, logger)
    content = graph.read_bytes() if isinstance(graph, Path) else graph.SerializeToString()
    parsed = parser.parse(content)
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
