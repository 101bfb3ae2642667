"""The full-size networks that the benchmarks time: the papers' own, untrained, at 360x480 with 21 classes."""

from collections.abc import Sequence

from segdeploy import artifact, making, precision, random_weights, workspace
from segdeploy.artifact import Artifact
from segdeploy.checkpoints import checkpoint
from segdeploy.engines import ort
from segdeploy.graphs.to_onnx import to_onnx
from segdeploy.progress import silent
from segdeploy.quantization import recipes, search
from segdeploy.quantization.images_in_parts import Parts
from segdeploy.spec import Precision
from segdeploy.workspace import EXPORTS


def untrained(name: str, size: tuple[int, int] = random_weights.SIZE) -> Artifact:
    """The float32 graph; nothing to prove, for it decides nothing."""
    weights = making.weights_for(name, making.ExportOptions(weights="random", size=size))
    network, spec = checkpoint.load(weights.checkpoint.path)
    path = artifact.graph_path(EXPORTS, name, Precision.FP32)
    return to_onnx(network, spec, path, weights=weights.origin_in(EXPORTS))


def quantized(fp32: Artifact, wanted: Precision, forms: Sequence[str] = ()) -> Artifact:
    """The same with every layer in low precision that can be, its ranges from a few photographs."""
    parts = Parts(workspace.packaged_images()[: random_weights.STATISTICS], [], [])
    (recipe,) = recipes.recipes(fp32, wanted, forms, parts, method=None, cache=None, progress=silent)
    in_float = recipe.layers.in_float
    model = recipe.build(in_float)
    return search.write(recipe.described(in_float, precision.module(wanted).BUDGET, model), model, None)


def full_size(name: str) -> dict[Precision, Artifact]:
    """fp32, and int8 as CPUs run it."""
    fp32 = untrained(name)
    return {Precision.FP32: fp32, Precision.INT8: quantized(fp32, Precision.INT8, [ort.FORM])}
