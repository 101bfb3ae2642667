"""The exact forms against what they replace: PyTorch's own pooling, un-pooling, resizing and averaging."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn
from torch.nn import functional as F

from segdeploy import blocks, interpolation
from segdeploy.blocks import MaxPoolWithIndices, max_unpool
from segdeploy.models import segnet

TYPES = (torch.float16, torch.float32, torch.float64)
AVERAGED = 1e-6  # relative to the exact average, in float32; 4e-7 was measured, and 1.6e-6 for PyTorch's own float32
ROUNDING = 1e-12  # of values around 1, in float64; 6e-14 was measured
RESIZED = 2e-5  # of values around 1, in float32; 4e-6 was measured: PyTorch finds its positions in float32
MAPS = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(2, 9), st.integers(2, 9))
FEW = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, math.nan])  # ties in nearly every window, both zeros too
ANY = st.floats(-1e4, 1e4, width=16)
quick = settings(max_examples=60)


@quick
@given(
    values=MAPS.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=st.one_of(FEW, ANY))),
    kind=st.sampled_from(TYPES),
    ceil_mode=st.booleans(),
)
def test_pooling_and_unpooling_are_bit_equal_to_pytorchs(
    values: np.ndarray[Any, np.dtype[np.float32]], kind: torch.dtype, *, ceil_mode: bool
) -> None:
    """Ties, negatives, NaN, odd sizes, both zeros, both roundings, three types."""
    require_equal(torch.from_numpy(values).to(kind), ceil_mode=ceil_mode)


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("ceil_mode", [True, False])
def test_every_small_size_is_bit_equal(kind: torch.dtype, *, ceil_mode: bool) -> None:
    """All sizes from 1x1 to 7x7: the borders are where rounding modes go wrong."""
    generator = torch.Generator().manual_seed(0)
    least = 1 if ceil_mode else 2
    for height in range(least, 8):
        for width in range(least, 8):
            x = torch.randint(-2, 4, (2, 3, height, width), generator=generator).to(kind)
            require_equal(x, ceil_mode=ceil_mode)
            require_equal(torch.where(x == 3, math.nan, x), ceil_mode=ceil_mode)


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_every_order_of_five_values_is_bit_equal(kind: torch.dtype) -> None:
    """All 5^4 windows hold every tie there is and every place of one, two, three and four NaN: the last one wins."""
    grid = torch.cartesian_prod(*[torch.tensor([-1.0, -0.0, 0.0, 1.0, math.nan], dtype=kind)] * 4)
    require_equal(grid.reshape(-1, 1, 2, 2), ceil_mode=False)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (3, 3)])
def test_a_nan_in_the_last_row_or_column_stays_where_it_is(size: tuple[int, int]) -> None:
    """An odd side is padded: what is put there must not win over the NaN that it stands beside, nor be one."""
    height, width = size
    ordered = torch.arange(1.0, 1 + height * width)
    for missing in (
        row * width + column for row, column in np.ndindex(size) if row == height - 1 or column == width - 1
    ):
        for sign in (1, -1):
            values = sign * ordered
            values[missing] = math.nan
            require_equal(values.reshape(1, 1, *size), ceil_mode=True)


def require_equal(x: Tensor, *, ceil_mode: bool) -> None:
    size = (x.shape[2], x.shape[3])
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    pooled, winners = MaxPoolWithIndices(ceil_mode=ceil_mode)(mine)
    expected, indices = F.max_pool2d(theirs, 2, ceil_mode=ceil_mode, return_indices=True)
    require_same_bits(pooled, expected)

    marks = torch.arange(1, pooled[0].numel() + 1, dtype=x.dtype).reshape(1, *pooled.shape[1:]).expand_as(pooled)
    require_same_bits(max_unpool(marks, winners, size), unpooled(marks, indices, size))

    full, expected_full = max_unpool(pooled, winners, size), unpooled(expected, indices, size)
    require_same_bits(full, expected_full)
    downstream = torch.arange(1, full[0].numel() + 1, dtype=x.dtype).reshape(1, *full.shape[1:]).expand_as(full)
    gradient, expected_gradient = (
        torch.autograd.grad([out, small], leaf, [downstream, torch.ones_like(small)])[0]
        for out, small, leaf in ((full, pooled, mine), (expected_full, expected, theirs))
    )
    require_same_bits(gradient, expected_gradient)


def unpooled(x: Tensor, indices: Tensor, size: tuple[int, int]) -> Tensor:
    return F.max_unpool2d(x, indices, [2, 2], [2, 2], [0, 0], size)


def require_same_bits(found: Tensor, expected: Tensor) -> None:
    assert torch.equal(found.isnan(), expected.isnan())
    numbers = ~expected.isnan()
    assert torch.equal(found[numbers], expected[numbers])
    assert torch.equal(found.signbit()[numbers], expected.signbit()[numbers])


@pytest.mark.parametrize("ceil_mode", [True, False])
def test_segnets_whole_chain_is_that_of_pytorch(*, ceil_mode: bool) -> None:
    """360x480 as the paper has it: 180x240, 90x120, 45x60, 23x30, 12x15 and back, with quantised (tied) values."""
    x = torch.randint(0, 128, (1, 2, 360, 480), generator=torch.Generator().manual_seed(0)).float()
    pool, mine, theirs, kept = MaxPoolWithIndices(ceil_mode=ceil_mode), x, x, []
    for _ in range(5):
        size = (mine.shape[2], mine.shape[3])
        mine, winners = pool(mine)
        theirs, indices = F.max_pool2d(theirs, 2, ceil_mode=ceil_mode, return_indices=True)
        kept.append((winners, indices, size))
    assert mine.shape[2:] == ((12, 15) if ceil_mode else (11, 15))
    for winners, indices, size in reversed(kept):
        mine, theirs = max_unpool(mine, winners, size), unpooled(theirs, indices, size)
        require_same_bits(mine, theirs)


def test_a_tied_window_unpools_to_its_first_position() -> None:
    """INT8 activations tie in about 1 % of windows; an equality mask would write the value twice."""
    x = torch.tensor([[[[3.0, 3.0], [3.0, 1.0]]]])
    pooled, winners = MaxPoolWithIndices(ceil_mode=True)(x)
    assert max_unpool(pooled, winners, (2, 2)).tolist() == [[[[3.0, 0.0], [0.0, 0.0]]]]
    mask = x == F.interpolate(pooled, scale_factor=2.0)
    assert torch.where(mask, x, 0.0).tolist() == [[[[3.0, 3.0], [3.0, 0.0]]]]


def test_an_equality_mask_would_fail_this_suite() -> None:
    """The planted fault: the form some exporters use must not pass for equal."""
    x = torch.randint(0, 4, (1, 2, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    pooled, indices = F.max_pool2d(x, 2, return_indices=True)
    masked = torch.where(x == F.interpolate(pooled, scale_factor=2.0), x, 0.0)
    with pytest.raises(AssertionError):
        require_same_bits(masked, unpooled(pooled, indices, (8, 8)))


def test_a_tournament_that_only_compares_would_fail_this_suite() -> None:
    """The planted fault: no number is larger than NaN, nor NaN than a number, so `b > a` drops one that comes later."""
    x = torch.tensor([[[[1.0, math.nan], [2.0, 3.0]]]])
    dropped = x.clone()
    for _ in range(2):
        first, second = dropped[..., ::2], dropped[..., 1::2]
        dropped = torch.where(second > first, second, first).transpose(2, 3)
    assert dropped.tolist() == [[[[3.0]]]]
    with pytest.raises(AssertionError):
        require_same_bits(dropped, F.max_pool2d(x, 2))


@pytest.mark.parametrize("value", [math.inf, -math.inf, torch.finfo(torch.float32).min])
def test_infinite_values_pool_and_unpool_without_nan(value: float) -> None:
    """Selecting by multiplication would give 0 x inf."""
    x = torch.tensor([[[[value, 1.0, value], [2.0, value, value], [value, value, value]]]])
    require_equal(x, ceil_mode=True)


def test_the_planes_of_a_batch_do_not_mix() -> None:
    """ONNX flattens pooling indices over the whole tensor, PyTorch over a plane; positions have no such trap."""
    x = torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    pooled, winners = MaxPoolWithIndices(ceil_mode=True)(x)
    whole = max_unpool(pooled, winners, (6, 5))
    for n in range(3):
        alone, its_winners = MaxPoolWithIndices(ceil_mode=True)(x[n : n + 1])
        assert torch.equal(whole[n : n + 1], max_unpool(alone, its_winners, (6, 5)))


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(45, 60), (65, 65), (64, 64), (33, 45), (60, 60), (6, 7), (2, 3), (1, 1), (5, 1)])
def test_average_pooling_is_adaptive_pooling_at_any_size(bins: int, size: tuple[int, int]) -> None:
    """Bins overlap where they do not divide the map, and repeat where the map is smaller than the grid."""
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    found = blocks.adaptive_average_pool(x, bins)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), F.adaptive_avg_pool2d(x.double(), bins), rtol=AVERAGED, atol=0)


@quick
@given(height=st.integers(1, 80), width=st.integers(1, 80), bins=st.integers(1, 9))
def test_average_pooling_is_adaptive_pooling_in_float64(height: int, width: int, bins: int) -> None:
    """In float64 a row that is dropped or counted twice cannot hide behind rounding."""
    x = torch.randn(1, 2, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        blocks.adaptive_average_pool(x, bins), F.adaptive_avg_pool2d(x, bins), rtol=0, atol=ROUNDING
    )


@pytest.mark.parametrize(
    "inputs, expected",
    [
        (45, [(0, 8), (7, 15), (15, 23), (22, 30), (30, 38), (37, 45)]),
        (65, [(0, 11), (10, 22), (21, 33), (32, 44), (43, 55), (54, 65)]),
        (64, [(0, 11), (10, 22), (21, 32), (32, 43), (42, 54), (53, 64)]),
        (33, [(0, 6), (5, 11), (11, 17), (16, 22), (22, 28), (27, 33)]),
        (60, [(0, 10), (10, 20), (20, 30), (30, 40), (40, 50), (50, 60)]),
        (2, [(0, 1), (0, 1), (0, 1), (1, 2), (1, 2), (1, 2)]),
    ],
)
def test_the_bins_are_those_of_the_definition(inputs: int, expected: list[tuple[int, int]]) -> None:
    """From floor(i n / o) to ceil((i + 1) n / o), each averaged evenly."""
    matrix = blocks.pooling_matrix(inputs, 6)
    assert [(int(row.nonzero()[0][0]), int(row.nonzero()[0][-1]) + 1) for row in matrix] == expected
    for row, (start, end) in zip(matrix, expected, strict=True):
        np.testing.assert_allclose(row[start:end], 1 / (end - start), rtol=1e-15)


SIDE = st.integers(1, 24)


@quick
@given(size=st.tuples(SIDE, SIDE), target=st.tuples(SIDE, SIDE), align_corners=st.booleans())
def test_resizing_is_interpolation(size: tuple[int, int], target: tuple[int, int], *, align_corners: bool) -> None:
    """Up, down and to or from a single row, under both conventions."""
    x = torch.randn(1, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = blocks.resize_bilinear(x, target, align_corners=align_corners)
    expected = F.interpolate(x, target, mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size, target", [((45, 60), (360, 480)), ((33, 33), (513, 513)), ((64, 60), (23, 7))])
def test_resizing_in_float32_is_interpolation_to_its_rounding(
    size: tuple[int, int], target: tuple[int, int], *, align_corners: bool
) -> None:
    x = torch.rand(1, 2, *size, generator=torch.Generator().manual_seed(0))
    found = blocks.resize_bilinear(x, target, align_corners=align_corners)
    expected = F.interpolate(x, target, mode="bilinear", align_corners=align_corners)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=RESIZED)


@pytest.mark.parametrize("align_corners", [True, False])
def test_a_resized_constant_stays_what_it_was(*, align_corners: bool) -> None:
    """Each row of the matrix sums to one, at the borders too."""
    for inputs, outputs in ((1, 7), (7, 1), (5, 40), (40, 5), (3, 3)):
        matrix = interpolation.interpolation_matrix(inputs, outputs, align_corners=align_corners)
        assert matrix.shape == (outputs, inputs)
        np.testing.assert_allclose(matrix.sum(axis=1), 1.0, rtol=1e-15)


SHAPES = [(1, 1, 2, 2), (2, 3, 4, 6), (3, 5, 8, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_phases_lie_in_dcr_order(shape: tuple[int, int, int, int]) -> None:
    """ONNX's definition, element by element: phase (p, q) of channel c is channel (2p + q) C + c."""
    x = torch.arange(math.prod(shape)).reshape(shape).float()
    deep = blocks.space_to_depth(x)
    N, C, H, W = shape
    assert deep.shape == (N, 4 * C, H // 2, W // 2)
    for n, c, row, column in np.ndindex(N, C, H, W):
        phase = 2 * (row % 2) + column % 2
        assert deep[n, phase * C + c, row // 2, column // 2] == x[n, c, row, column]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_two_rearrangements_undo_each_other(shape: tuple[int, int, int, int]) -> None:
    x = torch.arange(math.prod(shape)).reshape(shape).float()
    assert torch.equal(blocks.depth_to_space(blocks.space_to_depth(x)), x)
    deep = torch.arange(4 * math.prod(shape)).reshape(shape[0], 4 * shape[1], *shape[2:]).float()
    assert torch.equal(blocks.space_to_depth(blocks.depth_to_space(deep)), deep)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("operator", [blocks.space_to_depth, blocks.depth_to_space], ids=["to_depth", "to_space"])
def test_the_custom_operators_keep_torchs_rules(operator: Any, kind: torch.dtype) -> None:  # noqa: ANN401 - untyped
    """Schema, fake tensors, autograd and tracing under `torch.export`, by PyTorch's own checker."""
    x = torch.randn(2, 8, 4, 6, dtype=kind, requires_grad=True)
    assert set(torch.library.opcheck(operator, (x,)).values()) == {"SUCCESS"}
    torch.library.opcheck(operator, (x.detach().to(memory_format=torch.channels_last),))


@quick
@given(values=hnp.arrays(np.float64, (2, 3, 4, 5), elements=st.floats(-1e3, 1e3)))
def test_the_local_response_norm_is_pytorchs(values: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    """A window of five channels covers all three of an image, whichever stands in the middle."""
    x = torch.from_numpy(values)
    expected = nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)(x)
    torch.testing.assert_close(segnet.local_response_norm(x), expected, rtol=1e-12, atol=1e-12)
