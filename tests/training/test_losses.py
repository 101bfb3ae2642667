"""Cross-entropy with ignored pixels and weights, and the median-frequency weights of the SegNet paper."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor
from torch.nn import functional as F

from segdeploy.data import dataset
from segdeploy.training import losses

CLASSES = 4
IGNORED = 255
DATA = os.environ.get("SEGDEPLOY_DATA", "")

# CamVid's 367 training labels: name, pixels, frequency, and the weight by the median over the eleven classes.
CAMVID = [
    ("Sky", 10_682_767, 0.168911, 0.2793),
    ("Building", 14_750_079, 0.233861, 0.2017),
    ("Pole", 623_349, 0.009856, 4.7865),
    ("Road", 20_076_880, 0.316582, 0.1490),
    ("Pavement", 2_845_085, 0.047177, 1.0000),
    ("Tree", 6_166_762, 0.111872, 0.4217),
    ("SignSymbol", 743_859, 0.012264, 3.8467),
    ("Fence", 714_595, 0.023904, 1.9736),
    ("Car", 3_719_877, 0.059797, 0.7889),
    ("Pedestrian", 405_385, 0.007401, 6.3747),
    ("Bicyclist", 184_967, 0.005325, 8.8587),
]
VOID = 11
ROUNDED = 1e-4  # relative: the table's frequencies are rounded to a millionth, and the smallest is 0.005325
LAST_DIGIT = 5e-5  # of the table's weights


def logits_and_truth(*, ignored: float = 0.3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, CLASSES, 5, 6, generator=generator, dtype=torch.float64).requires_grad_()
    truth = torch.randint(CLASSES, (2, 5, 6), generator=generator)
    truth[torch.rand(truth.shape, generator=generator) < ignored] = IGNORED
    return logits, truth


@pytest.mark.parametrize("weights", [None, torch.tensor([0.2, 1.0, 3.0, 7.0], dtype=torch.float64)])
def test_a_normal_batch_has_pytorchs_mean(weights: Tensor | None) -> None:
    """Divided by the sum of the weights of the counted pixels, as PyTorch does and Caffe-SegNet does not."""
    logits, truth = logits_and_truth()
    found = losses.cross_entropy(logits, truth, ignore_index=IGNORED, weights=weights)
    expected = F.cross_entropy(logits, truth, weight=weights, ignore_index=IGNORED)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    mine, theirs = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (found, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("weights", [None, torch.ones(CLASSES, dtype=torch.float64)])
def test_a_batch_without_a_counted_pixel_gives_nothing(weights: Tensor | None) -> None:
    """A crop may hold only ignored pixels; PyTorch's NaN would destroy every weight of the network at once."""
    logits, truth = logits_and_truth(ignored=1.1)
    assert F.cross_entropy(logits, truth, ignore_index=IGNORED).isnan()
    loss = losses.cross_entropy(logits, truth, ignore_index=IGNORED, weights=weights)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()
    assert logits.grad.isfinite().all()


def test_a_batch_of_classes_without_weight_gives_nothing() -> None:
    """A class that training never saw weighs 0; alone in a batch it must not divide by that."""
    logits, truth = logits_and_truth(ignored=0)
    loss = losses.cross_entropy(logits, truth.clamp(max=1), ignore_index=IGNORED, weights=torch.zeros(CLASSES).double())
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_an_ignored_pixel_changes_neither_loss_nor_gradient() -> None:
    logits, truth = logits_and_truth(ignored=0)
    truth[:, 2:] = IGNORED
    cut = losses.cross_entropy(logits[:, :, :2], truth[:, :2], ignore_index=IGNORED)
    whole = losses.cross_entropy(logits, truth, ignore_index=IGNORED)
    torch.testing.assert_close(whole, cut, rtol=1e-12, atol=0)
    whole.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert not logits.grad[:, :, 2:].any()
    assert logits.grad[:, :, :2].any()


def test_an_ignored_index_among_the_classes_is_ignored_too() -> None:
    """Data sets whose void is class 0 train with `--ignore-index 0`."""
    logits, truth = logits_and_truth(ignored=0)
    weights = torch.arange(1.0, CLASSES + 1).double()
    found = losses.cross_entropy(logits, truth, ignore_index=0, weights=weights)
    torch.testing.assert_close(found, F.cross_entropy(logits, truth, weight=weights, ignore_index=0))


def test_the_weights_of_camvid_are_those_of_the_formula() -> None:
    """Pixels and frequencies of the eleven classes give the weights computed from them, void left out."""
    _, pixels, frequency, weights = zip(*CAMVID, strict=True)
    present = np.rint(np.array(pixels) / frequency).astype(np.int64)
    found = losses.median_frequency(np.array(pixels, np.int64), present)
    np.testing.assert_allclose(found, weights, rtol=ROUNDED, atol=LAST_DIGIT)


@pytest.mark.skipif(not DATA, reason="SEGDEPLOY_DATA does not name the folder that holds camvid/")
def test_the_weights_of_camvid_come_from_its_labels() -> None:
    """The same numbers, pixel by pixel from the 367 label files: void pixels belong to an image's total."""
    files = sorted((Path(DATA) / "camvid" / "trainannot").glob("*.png"))
    assert len(files) == 367
    truths = (dataset.read_truth(file, classes=11, ignore_index=VOID) for file in files)
    pixels, present = losses.class_pixels(truths, classes=11, ignore_index=VOID)
    assert pixels.tolist() == [row[1] for row in CAMVID]
    np.testing.assert_allclose(pixels / present, [row[2] for row in CAMVID], rtol=0, atol=5e-7)
    np.testing.assert_allclose(
        losses.median_frequency(pixels, present), [row[3] for row in CAMVID], rtol=0, atol=LAST_DIGIT
    )


@settings(max_examples=50)
@given(
    truths=st.lists(
        hnp.arrays(
            np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=5), elements=st.sampled_from([0, 1, 3, 9])
        )
    )
)
def test_pixels_are_counted_as_in_a_plain_loop(truths: list[np.ndarray[Any, np.dtype[np.uint8]]]) -> None:
    """`present` is the size of the images a class occurs in, ignored pixels and all."""
    pixels, present = losses.class_pixels(truths, classes=4, ignore_index=9)
    for index in range(4):
        assert pixels[index] == sum(pixel == index for truth in truths for pixel in truth.flatten().tolist())
        assert present[index] == sum(truth.size for truth in truths if index in truth)


def test_a_class_that_never_occurs_weighs_nothing_and_moves_no_median() -> None:
    pixels, present = np.array([10, 0, 40]), np.array([100, 0, 100])
    assert losses.median_frequency(pixels, present).tolist() == [2.5, 0.0, 0.625]


def test_labels_without_a_counted_pixel_weigh_nothing() -> None:
    assert losses.median_frequency(np.zeros(3, np.int64), np.zeros(3, np.int64)).tolist() == [0.0, 0.0, 0.0]
