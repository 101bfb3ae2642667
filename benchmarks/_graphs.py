"""The full-size networks that the benchmarks time: the papers' own, untrained, at 360x480 with 21 classes."""

from collections.abc import Sequence

from segdeploy import artifact, making
from segdeploy.artifact import Artifact
from segdeploy.checkpoints import checkpoint
from segdeploy.graphs.to_onnx import to_onnx
from segdeploy.progress import silent
from segdeploy.quantization import search
from segdeploy.spec import Precision


def untrained(name: str, size: tuple[int, int] = making.RANDOM_SIZE) -> Artifact:
    """The float32 graph; nothing to prove, for it decides nothing."""
    weights = making.weights_for(name, "random", size=size)
    network, spec = checkpoint.load(weights.checkpoint.path)
    described = weights.described_for(making.EXPORTS)
    return to_onnx(network, spec, artifact.graph_path(making.EXPORTS, name, Precision.FP32), weights=described)


def narrowed(fp32: Artifact, precision: Precision, forms: Sequence[str] = ()) -> Artifact:
    """The same as narrow as can be, its ranges from a few photographs."""
    few = making.packaged_images()[: making.RANDOM_STATISTICS]
    parts = search.Parts(few, [], [])
    (recipe,) = search.recipes(fp32, precision, forms, parts, method=None, cache=None, progress=silent)
    always = frozenset(recipe.always)
    return search.write(recipe.described(always, search.BUDGETS[precision]), recipe.build(always), None)


def full_size(name: str) -> dict[Precision, Artifact]:
    """fp32, and int8 as CPUs run it."""
    fp32 = untrained(name)
    return {Precision.FP32: fp32, Precision.INT8: narrowed(fp32, Precision.INT8, [search.NATIVE_FORM])}
