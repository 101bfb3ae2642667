"""What torch's exporter cannot write, or not for every runtime, computes the same in other operators."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segdeploy.torch_modules import rewriting

SUMS = 1e-6  # of values about 1: an average is added in another order
CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "average 6": lambda x: F.adaptive_avg_pool2d(x, 6),
    "average 5x7": lambda x: F.adaptive_avg_pool2d(x, (5, 7)),
    "maximum 3": lambda x: F.adaptive_max_pool2d(x, 3),
    "unpooling": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, 2, return_indices=True), (2, 2), output_size=x.shape[2:]),
    "unpooling 3": lambda x: F.max_unpool2d(
        *F.max_pool2d(x, 3, 3, return_indices=True), (3, 3), output_size=x.shape[2:]
    ),
}
LEFT: dict[str, Callable[[Tensor], Tensor]] = {
    "average 2 of 20": lambda x: F.adaptive_avg_pool2d(x[:, :, :, :26], (2, 2)),
    "windows that overlap": lambda x: F.max_unpool2d(*F.max_pool2d(x, 3, 2, return_indices=True), (3, 3), (2, 2)),
}


class Of(nn.Module):
    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x)


def program(compute: Callable[[Tensor], Tensor]) -> torch.export.ExportedProgram:
    return torch.export.export(Of(compute), (torch.zeros(2, 3, 20, 27),))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch's own trees
def test_a_rewritten_operator_computes_the_same(name: str) -> None:
    """With ties: of equal values the first is taken, as PyTorch does."""
    images = (torch.randn(2, 3, 20, 27, generator=torch.Generator().manual_seed(0)) * 2).round() / 2
    found = rewriting.rewritten(program(CASES[name]))
    assert not [node.target for node in found.graph.nodes if node.target in rewriting.TABLE]
    torch.testing.assert_close(found.module()(images), CASES[name](images), rtol=0, atol=SUMS)


@pytest.mark.parametrize("name", LEFT)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # the same
def test_what_the_exporter_writes_well_is_left_to_it(name: str) -> None:
    found = rewriting.rewritten(program(LEFT[name]))
    assert [node.target for node in found.graph.nodes if node.target in rewriting.TABLE]
