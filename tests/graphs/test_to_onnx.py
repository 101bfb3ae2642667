"""What an exported graph promises (export/README.md), for every network in the folder."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from segdeploy import artifact, models
from segdeploy.blocks import Network
from segdeploy.errors import InvalidRequestError
from segdeploy.graphs import to_onnx as export
from segdeploy.origin import WeightsOrigin
from segdeploy.spec import SPEC_KEY, WEIGHTS_KEY, Spec

SIZE = (48, 60)
CLASSES = tuple(f"class_{index}" for index in range(5))
COLOURS = tuple((index, index, index) for index in range(5))
LOGIT_TOLERANCE = 2e-4  # of the logits' range; measured 1e-5 to 6e-5 over the networks and three seeds
STANDARD_DOMAINS = {"", "ai.onnx"}
WEIGHTS = WeightsOrigin(kind="random", sha256="0" * 64)


def small(name: str, size: tuple[int, int] = SIZE, **variant: Any) -> tuple[Network, Spec]:  # noqa: ANN401
    """A network of few channels whose normalisation has seen noise, so that folding has something to fold."""
    torch.manual_seed(1)
    options = {"multiplier": 0.125, **variant}
    network = models.build(name, len(CLASSES), **options)
    spec = Spec(name, options, CLASSES, COLOURS, *size, margin=network.margin)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        models.deployed(network.train(), spec)(torch.tensor(noise(4, size)))
    return network.eval(), spec


def noise(count: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Smooth random pictures: (count, H, W, 3)."""
    coarse = torch.tensor(np.random.default_rng(count).uniform(0, 255, (count, 3, 8, 8)))
    fine = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 255)
    return fine.permute(0, 2, 3, 1).to(torch.uint8).numpy()


@pytest.fixture(scope="module", params=models.names())
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: ANN401 - the network and its graph
    network, spec = small(request.param)
    path = tmp_path_factory.mktemp("export") / f"{request.param}.fp32.onnx"
    return network, export.to_onnx(network, spec, path, weights=WEIGHTS)


def test_takes_uint8_images_of_any_number_and_gives_uint8_class_maps(exported: Any) -> None:  # noqa: ANN401
    """The contract that every engine and every user stands on."""
    _, graph = exported
    session = onnxruntime.InferenceSession(graph.path)
    (images,), (class_map,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["N", *SIZE, 3])
    assert (class_map.name, class_map.type, class_map.shape) == ("class_map", "tensor(uint8)", ["N", *SIZE])
    for count in (1, 3):
        assert session.run(None, {"images": noise(count, SIZE)})[0].shape == (count, *SIZE)


def test_draws_the_class_map_of_pytorch(exported: Any) -> None:  # noqa: ANN401
    """Every pixel that differs must be one that PyTorch cannot decide; on smooth pictures there are hardly any."""
    network, graph = exported
    pictures = noise(3, SIZE)
    with torch.inference_mode():
        expected = models.deployed(network, graph.spec).eval()(torch.tensor(pictures)).numpy()
    found = onnxruntime.InferenceSession(graph.path).run(None, {"images": pictures})[0]
    assert np.mean(found == expected) > 0.999


def test_has_only_standard_operators_and_no_metadata_of_the_exporter(exported: Any) -> None:  # noqa: ANN401
    """No plug-in, no function, no path of the machine that exported it."""
    _, graph = exported
    model = onnx.load(graph.path)
    assert {node.domain for node in model.graph.node} <= STANDARD_DOMAINS
    assert not model.functions
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", export.OPSET)]
    assert str(Path.cwd()).encode() not in graph.path.read_bytes()
    assert b"site-packages" not in graph.path.read_bytes()
    refused = {"MaxUnpool", "ScatterND", "ScatterElements", "Loop", "If", "BatchNormalization"}
    assert not refused & {node.op_type for node in model.graph.node}


def test_carries_its_spec_and_names_its_nodes_for_the_modules(exported: Any) -> None:  # noqa: ANN401
    """The Spec travels inside the file; a reader of the graph finds the network's own layers."""
    network, graph = exported
    model = onnx.load(graph.path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert Spec.from_json(properties[SPEC_KEY]) == graph.spec
    assert properties[WEIGHTS_KEY] == WEIGHTS.sha256
    names = [node.name for node in model.graph.node]
    assert len(names) == len(set(names))
    modules = dict(network.named_modules())
    convolutions = [node.name.partition("/")[0] for node in model.graph.node if node.op_type == "Conv"]
    assert convolutions
    assert all(isinstance(modules[name], torch.nn.Conv2d) for name in convolutions)


def test_is_the_same_file_when_exported_again(exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    """A hash in a review must mean something."""
    monkeypatch.setattr(export, "to_graph", inspect.unwrap(export.to_graph))  # not the one that the tests keep
    network, graph = exported
    again = export.to_onnx(network, graph.spec, tmp_path / "again.onnx", weights=WEIGHTS)
    assert again.sha256 == graph.sha256
    assert artifact.read(graph.path) == graph


@pytest.mark.parametrize("name", models.names())
def test_the_logits_form_gives_the_networks_own_logits(name: str) -> None:
    """Within what float32 kernels differ by, relative to the range of the logits, at an odd size."""
    size = (37, 50)
    network, spec = small(name, size)
    logits_spec = Spec.from_json(spec.to_json().replace('"class_map"', '"logits"'))
    graph = export.to_graph(network, logits_spec)
    pictures = noise(2, size)
    with torch.inference_mode():
        expected = models.deployed(network.double(), logits_spec).double()(torch.tensor(pictures)).numpy()
    found = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"images": pictures})[0]
    assert found.dtype == np.float32
    assert found.shape == (2, len(CLASSES), *size)
    assert np.abs(found - expected).max() < LOGIT_TOLERANCE * np.ptp(expected)


def test_the_paper_unet_gives_a_map_smaller_by_its_margin() -> None:
    """Valid convolutions consume 92 pixels on each side (U-Net, Fig. 1)."""
    network, spec = small("unet", (188, 204), form="paper")
    graph = export.to_graph(network, spec)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    assert session.run(None, {"images": noise(1, (188, 204))})[0].shape == (1, 4, 20)


def test_a_size_the_network_cannot_take_is_refused_with_the_next_valid_one(tmp_path: Path) -> None:
    network, spec = small("unet", (188, 188), form="paper")
    wrong = Spec.from_json(spec.to_json().replace('"height": 188', '"height": 360'))
    with pytest.raises(InvalidRequestError, match="364"):
        export.to_onnx(network, wrong, tmp_path / "wrong.onnx", weights=WEIGHTS)
    assert not list(tmp_path.iterdir())
