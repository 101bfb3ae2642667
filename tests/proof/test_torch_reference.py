"""What PyTorch itself cannot decide: near-ties of logits, and ties in pooling windows."""

import numpy as np
import torch

from segdeploy import workspace
from segdeploy.checkpoints import checkpoint
from segdeploy.proof import reference, torch_reference
from segdeploy.proof.torch_reference import TorchReference


def test_near_ties_are_pixels_closer_than_the_arithmetic_is_exact() -> None:
    exact = torch.tensor([[[0.0, 0.0, 0.0]], [[1.0, 0.001, -1.0]]], dtype=torch.float64)
    logits = exact.float() + 0.0006
    logits[0] -= 0.0012
    margin = min(2 * 0.0006, reference.LARGEST_TIE * float(logits.max() - logits.min()))
    gap = (logits[1] - logits[0]).abs()
    np.testing.assert_array_equal(reference.near_ties(logits.numpy(), exact.numpy()), (gap < margin).numpy())
    assert reference.near_ties(exact.float().numpy(), exact.numpy()).sum() == 0


def test_rough_arithmetic_does_not_make_everything_a_tie() -> None:
    """The margin is capped at a thousandth of the logits' range, however far float32 is off."""
    exact = torch.tensor([[[0.0, 5.0]], [[10.0, 5.004]]], dtype=torch.float64)
    rough = exact.float()
    rough[0, 0, 0] += 9.0
    np.testing.assert_array_equal(reference.near_ties(rough.numpy(), exact.numpy()), [[False, True]])


def test_one_class_has_no_ties() -> None:
    assert not reference.near_ties(np.zeros((1, 2, 2), np.float32), np.zeros((1, 2, 2))).any()


def test_pool_ties_show_the_windows_that_float32_cannot_decide() -> None:
    """A window of two all but equal maxima is a tie; one of equal zeros is not, for a zero is a zero anywhere."""
    exact = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    exact[0, 0, :2, :2] = torch.tensor([[1.0, 1.0 + 1e-9], [0.0, 0.0]], dtype=torch.float64)
    exact[0, 0, :2, 2:] = torch.tensor([[1.0, 0.5], [0.1, 0.2]], dtype=torch.float64)
    tied = torch_reference._tied_windows(exact.float(), exact + 1e-8)  # noqa: SLF001 - the rule itself
    assert tied[0, 0].tolist() == [[True, False], [False, False]]


def test_pool_ties_reach_as_far_as_the_decoder_sees() -> None:
    network, spec = checkpoint.load(workspace.PACKAGED / "segnet.safetensors")
    reaches = network.pooling_reaches()
    assert list(reaches) == sorted(reaches)
    flat = np.full((spec.height, spec.width, 3), 100, np.uint8)
    assert TorchReference(network, spec).pool_ties(flat).shape == (spec.height, spec.width)
