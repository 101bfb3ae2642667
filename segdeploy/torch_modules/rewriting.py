"""Operators that torch's exporter cannot write, or not for every runtime, in others that compute the same.

Adaptive pooling whose grid does not divide the image, the places of the maxima of a pooling, and what TorchScript calls
a convolution. H and W are fixed here.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

aten = torch.ops.aten
Sides = Sequence[int]
AsItIs: Any = NotImplemented  # torch then leaves the operator to its exporter


def rewritten(program: ExportedProgram) -> ExportedProgram:
    """The same program; as it is where it has none of these operators."""
    if not any(node.target in TABLE for node in program.graph.nodes):
        return program
    found: ExportedProgram = program.run_decompositions(dict(TABLE))
    return found


def _adaptive_average(x: Tensor, size: Sides) -> Tensor:
    """(N, C, H, W) -> (N, C, h, w): all windows of a row are equally high, so rows can be averaged before columns."""
    if x.shape[2] % size[0] == 0 and x.shape[3] % size[1] == 0:
        return AsItIs  # type: ignore[no-any-return] # torch asks for it
    rows = [x[:, :, first:last].mean(2, keepdim=True) for first, last in _windows(x.shape[2], size[0])]
    high = torch.cat(rows, 2)
    windows = _windows(x.shape[3], size[1])
    return torch.cat([high[:, :, :, first:last].mean(3, keepdim=True) for first, last in windows], 3)


def _adaptive_maximum(x: Tensor, size: Sides) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) -> the maxima (N, C, h, w) and where in H x W they stand."""
    windows = itertools.product(_windows(x.shape[2], size[0]), _windows(x.shape[3], size[1]))
    found = [_largest(x, rows, columns) for rows, columns in windows]
    values, places = (torch.stack(each, 2).reshape(*x.shape[:2], *size) for each in zip(*found, strict=True))
    return values, places


def _largest(x: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> tuple[Tensor, Tensor]:
    window = x[:, :, slice(*rows), slice(*columns)]
    values, index = window.reshape(*x.shape[:2], -1).max(2)
    size = rows[1] - rows[0], columns[1] - columns[0]
    return values, _place(index, size, x.shape[3]) + rows[0] * x.shape[3] + columns[0]


def _windows(inputs: int, outputs: int) -> list[tuple[int, int]]:
    """The first and last place of every window, as PyTorch cuts them."""
    return [(i * inputs // outputs, -(-(i + 1) * inputs // outputs)) for i in range(outputs)]


def _place(index: Tensor, window: tuple[int, int], width: int) -> Tensor:
    """Where in rows of `width` the places of a window lie that are counted within it: looked up, not divided."""
    rows, columns = (torch.arange(side, device=index.device) for side in window)
    table = (rows[:, None] * width + columns).reshape(-1)
    return table.index_select(0, index.reshape(-1)).reshape(index.shape)


def _pooled_with_places(x: Tensor, kernel: Sides, *given: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - of the operator
    """Windows that meet edge to edge, as SegNet's: (N, C, H, W) -> the maxima and where in H x W they stand.

    TensorRT's MaxPool gives no places. Of equal values the first is taken, as PyTorch does.
    """
    tall, wide = (*kernel, kernel[0])[:2]
    if not _are_apart(x, (tall, wide), *given):
        return AsItIs  # type: ignore[no-any-return] # torch asks for it
    high, long = x.shape[2] // tall, x.shape[3] // wide
    cut = x[:, :, : high * tall, : long * wide]
    corners = [cut[:, :, row::tall, column::wide] for row in range(tall) for column in range(wide)]
    values, corner = torch.stack(corners, 4).max(4)
    rows, columns = torch.arange(high, device=x.device) * tall, torch.arange(long, device=x.device) * wide
    return values, rows[:, None] * x.shape[3] + columns + _place(corner, (tall, wide), x.shape[3])


def _are_apart(
    x: Tensor,
    kernel: tuple[int, int],
    stride: Sides = (),
    padding: Sides = (0,),
    dilation: Sides = (1,),
    *ceil_mode: bool,
) -> bool:
    """Whether a pooling's windows neither overlap nor reach over the edge."""
    is_whole = x.shape[2] % kernel[0] == 0 and x.shape[3] % kernel[1] == 0
    step = (*stride, stride[0])[:2] if stride else kernel
    return step == kernel and not any(padding) and set(dilation) == {1} and (is_whole or not any(ceil_mode))


def _convolution(*given: Any) -> Tensor:  # noqa: ANN401 - of the operator
    """Input, weight, bias, stride, padding, dilation, transposed, padding of the output, groups; then how to run it."""
    found: Tensor = aten.convolution.default(*given[:9])
    return found


TABLE: Mapping[Any, Callable[..., Any]] = {
    aten.adaptive_avg_pool2d.default: _adaptive_average,
    aten.adaptive_max_pool2d.default: _adaptive_maximum,
    aten.max_pool2d_with_indices.default: _pooled_with_places,
    aten._convolution.default: _convolution,  # noqa: SLF001 - its name in PyTorch
    aten._convolution.deprecated: _convolution,  # noqa: SLF001 - the same
}
