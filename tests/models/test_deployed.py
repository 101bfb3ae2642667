"""The deployed form: uint8 images in, uint8 class maps out, everything between inside."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from segdeploy import models
from segdeploy.blocks import Network
from segdeploy.spec import Spec

NORMALISED = 5e-7  # float32 against the formula in float64, of values up to 2.7; 2.4e-7 was measured
CLASSES = 5


class Given(Network):
    """A network whose logits are what the test says, whatever it sees; it keeps what it saw."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.seen = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return self.logits


def spec(classes: int = CLASSES, **changes: Any) -> Spec:  # noqa: ANN401 - any field of Spec
    names = tuple(f"class_{index}" for index in range(classes))
    return dataclasses.replace(Spec("unet", {}, names, ((0, 0, 0),) * classes, 4, 6), **changes)


def photos(count: int = 2, height: int = 4, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", models.names())
def test_photos_go_in_and_class_maps_come_out(name: str) -> None:
    """uint8 (N, H, W, 3) to uint8 (N, H, W), and the class map is the argmax of the logits."""
    torch.manual_seed(0)
    network = models.build(name, CLASSES, multiplier=0.125).eval()
    images = photos(2, 48, 64)
    with torch.inference_mode():
        class_map = models.deployed(network, spec())(images)
        logits = models.deployed(network, spec(output="logits"))(images)
    assert class_map.dtype == torch.uint8
    assert class_map.shape == (2, 48, 64)
    assert logits.dtype == torch.float32
    assert logits.shape == (2, CLASSES, 48, 64)
    assert torch.equal(class_map.long(), logits.argmax(dim=1))


def test_a_tie_goes_to_the_first_class() -> None:
    """Runtimes differ in their argmax of equals; the promise is the first index."""
    logits = torch.zeros(1, CLASSES, 1, 3)
    logits[0, :, 0, 1] = torch.tensor([0.0, 2.0, 1.0, 2.0, 2.0])
    logits[0, :, 0, 2] = torch.tensor([-0.0, -1.0, 0.0, 0.0, -2.0])
    assert models.deployed(Given(logits), spec())(photos(1)).tolist() == [[[0, 1, 0]]]


def test_the_256th_class_survives_the_way_to_uint8() -> None:
    """The index goes through float32 to uint8: 255 must not wrap, saturate or round."""
    logits = torch.full((1, 256, 16, 16), -1.0)
    for index in range(256):
        logits[0, index, index // 16, index % 16] = 1.0
    assert models.deployed(Given(logits), spec(256))(photos(1)).flatten().tolist() == list(range(256))


@settings(max_examples=30)
@given(
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.1, 1)] * 3),
)
def test_normalisation_is_its_formula(mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
    """(x / 255 - mean) / std for each channel, over every value a channel takes, channels before rows."""
    values = np.arange(256, dtype=np.uint8)
    image = np.stack([values, values[::-1], np.roll(values, 7)], axis=-1).reshape(1, 16, 16, 3)
    network = Given(torch.zeros(1, CLASSES, 16, 16))
    models.deployed(network, spec(mean=mean, std=std))(torch.from_numpy(image))
    expected = ((image.astype(np.float64) / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert network.seen.dtype == torch.float32
    assert network.seen.shape == expected.shape
    np.testing.assert_allclose(network.seen.numpy(), expected, rtol=0, atol=NORMALISED / min(std))


def test_the_normalisation_of_imagenet_is_within_its_stated_error() -> None:
    """Black, white and the mean colour, by the numbers everyone knows."""
    network = Given(torch.zeros(1, CLASSES, 1, 2))
    deployed = models.deployed(network, spec())
    deployed(torch.tensor([[[[0, 0, 0], [255, 255, 255]]]], dtype=torch.uint8))
    black, white = network.seen[0, :, 0].T.tolist()
    np.testing.assert_allclose(black, [-2.1179039, -2.0357143, -1.8044444], atol=NORMALISED)
    np.testing.assert_allclose(white, [2.2489083, 2.4285714, 2.6400000], atol=NORMALISED)


def test_normalising_in_float64_is_for_the_proof() -> None:
    """`double()` moves the whole wrapper: the proof runs the network once in each precision."""
    network = Given(torch.zeros(1, CLASSES, 4, 6))
    models.deployed(network, spec()).double()(photos(1))
    assert network.seen.dtype == torch.float64


def test_the_constants_are_part_of_the_state_and_no_parameters() -> None:
    """They must follow `.to(device)` and stay out of the optimiser."""
    deployed = models.deployed(Given(torch.zeros(1)), spec())
    assert isinstance(deployed, nn.Module)
    assert set(dict(deployed.named_buffers())) == {"mean", "gain"}
    assert not list(deployed.parameters())
