"""Asked and executed: the precision that a runtime really computes in, read from its own optimised graph."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import known

from segdeploy import engines, fitting, images, models, workspace
from segdeploy.artifact import Artifact
from segdeploy.checkpoints import checkpoint
from segdeploy.data import dataset
from segdeploy.graphs.graph import Graph, layer_work
from segdeploy.graphs.to_onnx import to_onnx
from segdeploy.low_precision import Executed
from segdeploy.progress import silent
from segdeploy.proof import executed
from segdeploy.quantization import images_in_parts, search
from segdeploy.quantization.recipes import Recipe, recipes
from segdeploy.spec import Precision

EXAMPLES = Path(__file__).parents[2] / "examples" / "nuclei"
ENOUGH = 0.9
SAME_MASKS = 0.99  # of the pixels, int8 in two runtimes: sums of eight-bit products are exact, floats between are not


def fp32_of(name: str, folder: Path) -> Artifact:
    """The packaged network as a graph; its proof is another test's."""
    weights = workspace.weights_for(name)
    network, spec = checkpoint.load(weights.checkpoint.path)
    return to_onnx(network, spec, folder / f"{name}.fp32.onnx", weights=weights.origin_in(folder))


def recipe_for(fp32: Artifact, precision: Precision, *forms: str) -> Recipe:
    """Four images are enough to know what is computed in which type."""
    parts = images_in_parts.parts_of(at_hand=workspace.pictures_of(None)[:8], calibrate=None, data=None)
    (recipe,) = recipes(fp32, precision, forms, parts, method=None, cache=None, progress=silent)
    return recipe


def converted(fp32: Artifact, precision: Precision, *, in_float: Callable[[str], bool] = lambda _: False) -> Artifact:
    """In low precision wherever that can be, but for the layers that are named."""
    recipe = recipe_for(fp32, precision, *(["unsigned"] if precision is Precision.INT8 else []))
    chosen = {layer for layer in recipe.layers.work if in_float(layer)}
    model = recipe.build(chosen)
    return search.write(recipe.described(chosen, recipe.module.BUDGET, model), model, None)


@pytest.fixture(scope="module", params=models.names())
def packaged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The fp32 graph of each packaged network."""
    return fp32_of(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The packaged U-Net by precision."""
    fp32 = fp32_of("unet", tmp_path_factory.mktemp("unet"))
    return {"fp32": fp32, **{precision: converted(fp32, precision) for precision in (Precision.INT8, Precision.FP16)}}


def masks(file: Artifact, runtime: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with engines.open_engine(file, runtime=runtime, device="cpu") as engine:
        photos = [images.read(path) for path in dataset.image_files(EXAMPLES)]
        return np.stack([engine.classify(fitting.prepared(photo, file.spec)[None])[0] for photo in photos])


def test_the_runtimes_compute_in_int8_what_is_asked_for_in_int8(packaged: Artifact) -> None:
    """Read from the optimised graph. Logits are never rounded, which keeps the classifier wide in ONNX Runtime."""
    graph = converted(packaged, Precision.INT8)
    assert executed.asked(onnx.load(graph.path)) == {"int8": 1.0}
    for runtime in ("ort", "ov"):
        found = executed.executed(graph, runtime=runtime, device="cpu")
        assert found.delivered is Precision.INT8
        assert known(found.delivered_share) >= ENOUGH
        assert len(found.wider) <= (1 if runtime == "ort" else 0), found.wider


def test_int8_in_two_runtimes_draws_the_same_masks(unet: dict[str, Artifact]) -> None:
    """The form that both take is exact in both."""
    ort, ov, fp32 = masks(unet["int8"], "ort"), masks(unet["int8"], "ov"), masks(unet["fp32"], "ort")
    assert np.mean(ort == ov) >= SAME_MASKS
    assert np.mean(ort == fp32) >= SAME_MASKS


@pytest.mark.parametrize("runtime", ["ort", "ov"])
def test_fp16_on_a_cpu_is_float32_and_says_so(unet: dict[str, Artifact], runtime: str) -> None:
    found = executed.executed(unet["fp16"], runtime=runtime, device="cpu")
    assert (found.delivered, found.delivered_share) == (Precision.FP32, 0)
    work = layer_work(Graph(onnx.load(unet["fp16"].path)))
    assert sorted(found.wider) == sorted(work)
    assert [work[layer] for layer in found.wider] == sorted(work.values(), reverse=True), "the most work first"


def test_what_runs_wider_in_the_signed_form_is_named(unet: dict[str, Artifact], tmp_path: Path) -> None:
    """ONNX Runtime leaves the convolutions of TensorRT's form in float32: that is why it has a form of its own."""
    recipe = recipe_for(unet["fp32"], Precision.INT8, "signed")
    model = recipe.build([])
    made = dataclasses.replace(recipe.described([], recipe.module.BUDGET, model), path=tmp_path / "signed.onnx")
    found = executed.executed(search.write(made, model, None), runtime="ort", device="cpu")
    assert (found.delivered, found.delivered_share) == (Precision.FP32, 0)
    assert set(found.wider) == set(recipe.layers.work)


def test_layers_left_in_float_are_not_held_against_the_runtime(unet: dict[str, Artifact]) -> None:
    """Delivered is a share of what was asked for, asked a share of everything."""
    graph = converted(unet["fp32"], Precision.INT8, in_float=lambda layer: layer.startswith("up."))
    asked = executed.asked(onnx.load(graph.path))
    assert set(asked) == {"int8", "fp32"}
    assert asked["int8"] == pytest.approx(known(graph.low_precision).low_share)
    for runtime in ("ort", "ov"):
        found = executed.executed(graph, runtime=runtime, device="cpu")
        assert found.delivered is Precision.INT8
        assert not [layer for layer in found.wider if layer.startswith("up.")]


def test_a_graph_without_one_layer_in_low_precision_delivers_float32(unet: dict[str, Artifact]) -> None:
    """What `--min-agreement 1` may come to is called int8, and computes nothing in it."""
    graph = converted(unet["fp32"], Precision.INT8, in_float=lambda _: True)
    assert executed.asked(onnx.load(graph.path)) == {"fp32": 1.0}
    assert executed.executed(graph, runtime="ort", device="cpu").delivered is Precision.FP32


def test_fp32_is_what_it_is(unet: dict[str, Artifact]) -> None:
    found = executed.executed(unet["fp32"], runtime="ort", device="cpu")
    assert found == Executed(delivered=Precision.FP32, delivered_share=1.0, wider=())


@pytest.mark.parametrize(
    "share,kind", [(0.0, Precision.FP32), (0.89, Precision.FP32), (0.91, Precision.INT8), (1.0, Precision.INT8)]
)
def test_nine_tenths_of_the_work_are_enough(
    unet: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, share: float, kind: Precision
) -> None:
    """Of the multiply-adds, not of the layers."""
    work = {"large/Conv": round(10_000 * share), "small/Conv": 10_000 - round(10_000 * share)}
    monkeypatch.setattr("segdeploy.graphs.graph.layer_work", lambda _: work)
    monkeypatch.setattr("segdeploy.graphs.graph.layer_types", lambda _: dict.fromkeys(work, Precision.INT8))
    ort = engines.modules()["ort"]
    monkeypatch.setattr(ort, "low_precision_layers", lambda *_, **__: {"large/Conv": Precision.INT8})
    found = executed.executed(unet["int8"], runtime="ort", device="cpu")
    assert (found.delivered, found.wider) == (kind, ("small/Conv",))
    assert found.delivered_share == pytest.approx(share)
