"""What every file in precision/ has to do; a new one is tested because it is there."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import known, photograph

import segdeploy
from segdeploy import artifact, engines, precision
from segdeploy.graphs.graph import Graph, layer_types, layer_work
from segdeploy.making import ExportOptions
from segdeploy.precision import PrecisionModule, Range
from segdeploy.proof.limits import FLOAT32
from segdeploy.quantization import calibration, search
from segdeploy.spec import Precision

CASES = [(name, form) for name in precision.names() for form in precision.module(name).FORMS or (None,)]


@pytest.fixture(scope="module")
def wide(small: Path) -> onnx.ModelProto:
    return onnx.load(small / "export" / "unet.fp32.onnx")


def ranges(module: PrecisionModule, model: onnx.ModelProto) -> dict[str, Range]:
    batches = [photograph(64, 64, seed)[None] for seed in range(3)]
    return calibration.extremes(model, module.tensors(model), lambda: batches)


def converted(name: str, form: str | None, model: onnx.ModelProto, in_float: set[str] | None = None) -> Any:  # noqa: ANN401
    module = precision.module(name)
    known = ranges(module, model)
    kept = set(module.layers(model, known).in_float) | (in_float or set())
    return module.convert(model, known, form=form, in_float=kept)


@pytest.mark.parametrize("name, form", CASES)
def test_a_converted_graph_holds_the_type_it_is_named_for(name: str, form: str | None, wide: onnx.ModelProto) -> None:
    module, model = precision.module(name), converted(name, form, wide)
    onnx.checker.check_model(model, full_check=True)
    assert name == module.PRECISION
    types = layer_types(Graph(model))
    layers = module.layers(wide, ranges(module, wide))
    low = {layer for layer, kind in types.items() if kind is module.PRECISION}
    assert low == set(layer_work(Graph(wide))) - set(layers.in_float)
    assert low, "the small network has something to convert"
    assert set(layers.work) >= set(layers.in_float)


@pytest.mark.parametrize("name, form", CASES)
def test_what_is_to_stay_in_float32_stays(name: str, form: str | None, wide: onnx.ModelProto) -> None:
    """The search gives layers back one by one."""
    module = precision.module(name)
    candidates = set(layer_work(Graph(wide))) - set(module.layers(wide, ranges(module, wide)).in_float)
    for layer in sorted(candidates)[::4]:
        types = layer_types(Graph(converted(name, form, wide, {layer})))
        assert types[layer] is Precision.FP32
        assert sum(kind is module.PRECISION for kind in types.values()) == len(candidates) - 1


@pytest.mark.parametrize("name, form", CASES)
def test_the_same_graph_gives_the_same_bytes(name: str, form: str | None, wide: onnx.ModelProto) -> None:
    first, second = (converted(name, form, wide).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name, form", CASES)
def test_its_own_arithmetic_draws_nearly_the_same_masks(name: str, form: str | None, small: Path) -> None:
    """And not quite the same network: a conversion that rounds nothing would be float32 under another name."""
    fp32 = artifact.read(small / "export" / "unet.fp32.onnx")
    model = onnx.load(fp32.path)
    graph = dataclasses.replace(fp32, precision=precision.module(name).PRECISION, form=form)
    images = np.stack([photograph(64, 64, seed) for seed in range(6)])
    with (
        engines.open_engine(fp32, runtime="ort", device="cpu") as wide,
        known(search.graph_stage("graph", graph, converted(name, form, model), FLOAT32).engine) as low,
    ):
        agreement = float(np.mean(wide.classify(images) == low.classify(images)))
    assert agreement > 0.97
    weights = {tensor.name for tensor in model.graph.initializer}
    assert weights != {tensor.name for tensor in converted(name, form, model).graph.initializer}


@pytest.mark.parametrize("name", precision.names())
def test_the_command_exports_it_and_keeps_its_certificate(
    name: str, workspace: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # fp8 leaves layers of few channels alone: most of this network.
    monkeypatch.setattr(search, "LEAST_LOW_SHARE", 0.25)
    options = ExportOptions(calibrate=photos, min_agreement=0.8)
    graphs = segdeploy.export("unet", precision=name, options=options)
    assert [graph.form for graph in graphs] == list(precision.module(name).FORMS or (None,))
    for graph in graphs:
        assert artifact.read(workspace / graph.path) == dataclasses.replace(graph, path=workspace / graph.path)
        assert graph.certificate is not None
        assert graph.certificate.passed
        assert graph.low_precision is not None
        assert graph.low_precision.asked[name] > 0
