"""The examples of the lecture that the project grew from, worked by hand and held against the product's own blocks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from segdeploy import images
from segdeploy.blocks import ConvNorm, MaxPoolWithIndices, depth_to_space, max_unpool
from segdeploy.interpolation import interpolation_matrix

KERNEL = [1.0, 2.0, 3.0]


@settings(max_examples=40)
@given(
    signal=st.lists(st.integers(-9, 9), min_size=1, max_size=20),
    kernel=st.lists(st.integers(-9, 9), min_size=3, max_size=3),
    rate=st.integers(1, 7),
)
def test_atrous_convolution_is_its_formula(signal: list[int], kernel: list[int], rate: int) -> None:
    """y[i] = sum_k x[i + r k] w[k]: no flip, holes of r, and zeros outside; k runs over -1, 0, 1."""
    block = ConvNorm(1, 1, 3, dilation=rate, relu=False)
    conv = block.get_submodule("conv")
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 1] = torch.tensor(kernel)
    conv.load_state_dict({"weight": weight})
    y = conv(torch.tensor(signal, dtype=torch.float32).reshape(1, 1, 1, -1)).flatten().tolist()
    expected = [
        sum(signal[i + rate * k] * kernel[k + 1] for k in (-1, 0, 1) if 0 <= i + rate * k < len(signal))
        for i in range(len(signal))
    ]
    assert y == expected


@pytest.mark.parametrize("dilation, side", [(1, 224), (2, 222), (3, 220), (6, 214), (12, 202), (18, 190)])
def test_the_lectures_atrous_convolution_shrinks_the_map(dilation: int, side: int) -> None:
    """Padding 1 at dilation 6 gives 214 of 224 pixels; our block pads by the dilation and keeps them."""
    x = torch.zeros(1, 3, 224, 224)
    lecture = nn.Conv2d(3, 4, 3, padding=1, dilation=dilation)
    assert lecture(x).shape == (1, 4, side, side)
    block = ConvNorm(3, 4, 3, dilation=dilation).get_submodule("conv")
    assert block(x).shape == (1, 4, 224, 224)
    assert [p.numel() for p in block.parameters()] == [108]  # the holes cost no weights


def convolution_matrix(inputs: int, stride: int) -> Tensor:
    """(outputs, inputs): row i holds the kernel from column i * stride on."""
    rows = range((inputs - len(KERNEL)) // stride + 1)
    matrix = torch.zeros(len(rows), inputs)
    for row in rows:
        matrix[row, row * stride : row * stride + len(KERNEL)] = torch.tensor(KERNEL)
    return matrix


@pytest.mark.parametrize(
    "stride, forward, back",
    [
        (1, [14.0, 20.0, 26.0, 32.0], [14.0, 48.0, 108.0, 144.0, 142.0, 96.0]),
        (2, [14.0, 26.0], [14.0, 28.0, 68.0, 52.0, 78.0, 0.0]),
    ],
)
def test_a_transposed_convolution_is_the_transposed_matrix(
    stride: int, forward: list[float], back: list[float]
) -> None:
    """C x convolves, C^T y gives the shape back, not the values; stride 2 on six needs one pixel more."""
    x, kernel = torch.arange(1.0, 7.0), torch.tensor(KERNEL).reshape(1, 1, -1)
    matrix = convolution_matrix(6, stride)
    y = F.conv1d(x.reshape(1, 1, -1), kernel, stride=stride)
    assert y.flatten().tolist() == (matrix @ x).tolist() == forward
    z = F.conv_transpose1d(y, kernel, stride=stride, output_padding=(6 - len(KERNEL)) % stride)
    assert z.flatten().tolist() == (matrix.T @ y.flatten()).tolist() == back


@pytest.mark.parametrize("stride, expected", [(1, [1.0, 4.0, 7.0, 6.0]), (2, [1.0, 2.0, 5.0, 4.0, 6.0])])
def test_the_lectures_one_dimensional_example(stride: int, expected: list[float]) -> None:
    """Each input lays a copy of the kernel down, `stride` apart; where copies overlap they add."""
    z = F.conv_transpose1d(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[KERNEL]]), stride=stride)
    assert z.flatten().tolist() == expected


def test_the_textbooks_two_dimensional_example() -> None:
    square = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    assert F.conv_transpose2d(square, square).tolist() == [[[[0.0, 0.0, 1.0], [0.0, 4.0, 6.0], [4.0, 12.0, 9.0]]]]


SMALL = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])


def test_nearest_neighbour_repeats_each_pixel() -> None:
    """What takes a class map back to the size of its photo."""
    large = images.to_photo_size(SMALL[0, 0].numpy().astype(np.uint8), height=4, width=4)
    assert large.tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


def test_a_bed_of_nails_puts_each_pixel_in_its_first_corner() -> None:
    """Unpooling without indices: the values in phase a, zeros in b, c and d."""
    zeros = torch.zeros_like(SMALL)
    nails = [[1.0, 0.0, 2.0, 0.0], [0.0] * 4, [3.0, 0.0, 4.0, 0.0], [0.0] * 4]
    assert depth_to_space(torch.cat([SMALL, zeros, zeros, zeros], dim=1))[0, 0].tolist() == nails
    first = (torch.zeros_like(SMALL, dtype=torch.bool),) * 3
    assert max_unpool(SMALL, first, (4, 4))[0, 0].tolist() == nails


def test_max_unpooling_puts_each_value_where_its_maximum_stood() -> None:
    """Stanford's example, which the lecture shows: pool 4x4, compute, put the result back by the indices."""
    x = torch.tensor([[[[1.0, 2, 6, 3], [3, 5, 2, 1], [1, 2, 2, 1], [7, 3, 4, 8]]]])
    pooled, winners = MaxPoolWithIndices(ceil_mode=True)(x)
    assert pooled.tolist() == [[[[5.0, 6.0], [7.0, 8.0]]]]
    unpooled = [[0.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0] * 4, [3.0, 0.0, 0.0, 4.0]]
    assert max_unpool(SMALL, winners, (4, 4))[0, 0].tolist() == unpooled


def test_bilinear_up_sampling_by_hand_under_both_conventions() -> None:
    """Two pixels to four: aligned corners go in thirds, half pixels repeat the border."""
    line = np.array([0.0, 12.0])
    aligned, half = (interpolation_matrix(2, 4, align_corners=aligned) @ line for aligned in (True, False))
    np.testing.assert_allclose(aligned, [0.0, 4.0, 8.0, 12.0], atol=1e-12)
    np.testing.assert_allclose(half, [0.0, 3.0, 9.0, 12.0], atol=1e-12)
