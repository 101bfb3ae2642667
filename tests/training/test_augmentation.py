"""Training samples: image and mask move together, chance comes from (seed, epoch, index) alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from segdeploy import metrics
from segdeploy.data.dataset import Picture
from segdeploy.spec import Spec
from segdeploy.training.data import Pair, TrainingData, augmented
from segdeploy.training.options import Augmentation

CLASSES = 4
STEP = 60  # grey levels between two classes: an image that encodes its own mask
SEED = st.integers(0, 2**32 - 1)
quick = settings(max_examples=40)


def spec(height: int = 24, width: int = 32, **changes: Any) -> Spec:  # noqa: ANN401 - any field of Spec
    names = tuple(f"class_{index}" for index in range(CLASSES))
    return Spec("unet", {}, names, ((0, 0, 0),) * CLASSES, height, width, **changes)


def encoded(height: int = 24, width: int = 32, *, block: int = 4) -> Pair:
    """A mask of random blocks, and an image whose grey level is its class."""
    coarse = np.random.default_rng(0).integers(0, CLASSES, (height // block, width // block), dtype=np.uint8)
    truth = coarse.repeat(block, 0).repeat(block, 1)
    return grey(truth), truth


def grey(truth: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return (truth * STEP)[..., None].repeat(3, axis=2)


@quick
@given(seed=SEED, crop=st.tuples(st.integers(1, 24), st.integers(1, 32)), flip=st.booleans())
def test_image_and_mask_are_flipped_and_cropped_together(seed: int, crop: tuple[int, int], *, flip: bool) -> None:
    """Without scaling every pixel must still encode its own class."""
    augmentation = Augmentation(crop, scale=(1.0, 1.0), flip_vertically=flip)
    photo, truth = augmented(*encoded(), augmentation, spec(), np.random.default_rng(seed))
    assert photo.shape == (*crop, 3)
    assert truth.shape == crop
    np.testing.assert_array_equal(photo, grey(truth))


@quick
@given(seed=SEED, low=st.floats(0.75, 1.0), high=st.floats(1.0, 2.0))
def test_image_and_mask_are_scaled_together(seed: int, low: float, high: float) -> None:
    """Off the borders of the blocks the colour still names the class: a shift of two pixels would show."""
    augmentation = Augmentation((64, 64), scale=(low, high), flip_vertically=True)
    pair = encoded(64, 64, block=16)
    photo, truth = augmented(*pair, augmentation, spec(64, 64), np.random.default_rng(seed))
    inside = ~metrics.boundary_band(truth, width=2) & (truth != 255)
    inside[[0, 1, -2, -1]] = inside[:, [0, 1, -2, -1]] = False  # a border may lie just outside the crop
    assert inside.mean() > 0.15
    np.testing.assert_array_equal(photo[inside], grey(truth)[inside])


def test_masks_keep_their_classes_when_scaled() -> None:
    """Interpolated indices would invent classes between two others."""
    truth = np.zeros((24, 32), np.uint8)
    truth[:, 16:] = 3
    for seed in range(20):
        augmentation = Augmentation((24, 32), scale=(0.6, 1.7))
        _, view = augmented(grey(truth), truth, augmentation, spec(), np.random.default_rng(seed))
        assert set(np.unique(view)) <= {0, 3, 255}


def test_both_flips_and_every_offset_occur() -> None:
    """A crop that never reaches the last row, or a coin that never falls, trains on less than it was given."""
    truth = np.arange(6, dtype=np.uint8).reshape(2, 3)
    views = {
        augmented(grey(truth), truth, Augmentation((1, 1), (1.0, 1.0)), spec(), np.random.default_rng(seed))[1].item()
        for seed in range(100)
    }
    assert views == set(range(6))
    corners = {
        augmented(
            grey(truth),
            truth,
            Augmentation((2, 3), (1.0, 1.0), flip_vertically=True),
            spec(),
            np.random.default_rng(seed),
        )[1][0, 0].item()
        for seed in range(40)
    }
    assert corners == {0, 2, 3, 5}


def test_up_stays_up_unless_it_means_nothing() -> None:
    truth = np.array([[0], [1]], np.uint8)
    for seed in range(20):
        _, view = augmented(grey(truth), truth, Augmentation((2, 1), (1.0, 1.0)), spec(), np.random.default_rng(seed))
        assert view.tolist() == [[0], [1]]


def test_the_scale_spans_its_range() -> None:
    """Half the draws shrink and half enlarge: the factor is even in its logarithm."""
    truth = np.zeros((64, 64), np.uint8)
    augmentation = Augmentation((128, 128), scale=(0.5, 2.0))
    sides = []
    for seed in range(200):
        _, view = augmented(grey(truth), truth, augmentation, spec(64, 64), np.random.default_rng(seed))
        sides.append(int((view == 0).any(axis=0).sum()))
    assert min(sides) < 36
    assert max(sides) > 116
    assert 52 < np.median(sides) < 78


def test_a_crop_larger_than_the_image_is_padded_with_what_is_ignored() -> None:
    """The mean colour is zero after normalisation; the ignored index teaches nothing; the image is in the middle."""
    augmentation = Augmentation((30, 44), scale=(1.0, 1.0))
    pair = encoded()
    photo, truth = augmented(*pair, augmentation, spec(), np.random.default_rng(0))
    assert truth.shape == (30, 44)
    middle = (slice(3, 27), slice(6, 38))
    np.testing.assert_array_equal(photo[middle], grey(truth[middle]))
    outside = np.ones(truth.shape, bool)
    outside[middle] = False
    assert (truth[outside] == 255).all()
    assert (photo[outside] == (124, 116, 104)).all()
    assert (truth[middle] != 255).all()


def test_padding_takes_the_ignored_index_of_the_spec() -> None:
    augmentation = Augmentation((30, 44), scale=(1.0, 1.0))
    _, truth = augmented(*encoded(), augmentation, spec(ignore_index=99), np.random.default_rng(0))
    assert truth[0, 0] == 99


def test_one_side_larger_pads_one_side_only() -> None:
    photo, truth = augmented(*encoded(), Augmentation((8, 40), (1.0, 1.0)), spec(), np.random.default_rng(0))
    assert (truth[:, :4] == 255).all()
    assert (truth[:, 36:] == 255).all()
    np.testing.assert_array_equal(photo[:, 4:36], grey(truth)[:, 4:36])


def test_the_u_net_of_the_paper_gets_its_margin_as_mirrored_context() -> None:
    """Valid convolutions eat 92 pixels a side: the truth is 184 smaller, and the image around it is mirrored."""
    side, margin = 204, 92
    augmentation = Augmentation((side, side), scale=(1.0, 1.0))
    photo, truth = augmented(*encoded(40, 40), augmentation, spec(side, side, margin=margin), np.random.default_rng(0))
    assert photo.shape == (side, side, 3)
    assert truth.shape == (side - 2 * margin,) * 2
    inner = slice(margin, side - margin)
    np.testing.assert_array_equal(photo[inner, inner], grey(truth))
    np.testing.assert_array_equal(photo[margin - 1], photo[margin + 1])
    np.testing.assert_array_equal(photo[:, margin - 5], photo[:, margin + 5])


@pytest.fixture
def samples(tmp_path: Path) -> list[Picture]:
    photo, truth = encoded()
    found = []
    for index in range(2):
        sample = Picture(tmp_path / f"{index}.png", tmp_path / f"{index}_mask.png")
        Image.fromarray(photo).save(sample.image)
        Image.fromarray(truth).save(sample.label)
        found.append(sample)
    return found


def training_data(samples: list[Picture], *, seed: int = 0, epoch: int = 0) -> TrainingData:
    data = TrainingData(samples, spec(), Augmentation((16, 16), flip_vertically=True), seed=seed)
    data.epoch = epoch
    return data


def test_a_sample_is_what_the_network_takes(samples: list[Picture]) -> None:
    photo, truth = training_data(samples)[0]
    assert (photo.dtype, photo.shape) == (torch.uint8, (16, 16, 3))
    assert (truth.dtype, truth.shape) == (torch.int64, (16, 16))
    assert len(training_data(samples)) == 2


def test_chance_is_seed_epoch_and_index_alone(samples: list[Picture]) -> None:
    """A resumed run draws what the first would have drawn, in whatever order and from whatever process."""
    first, again = training_data(samples, seed=3, epoch=5), training_data(samples, seed=3, epoch=5)
    expected = [first[index] for index in (0, 1)]
    np.random.default_rng().random(100)
    for index in (1, 0, 1):
        photo, truth = again[index]
        assert torch.equal(photo, expected[index][0])
        assert torch.equal(truth, expected[index][1])


@pytest.mark.parametrize("seed, epoch, index", [(4, 5, 0), (3, 6, 0), (3, 5, 1)])
def test_another_seed_epoch_or_index_is_another_view(samples: list[Picture], seed: int, epoch: int, index: int) -> None:
    """Both samples hold the same picture, so a difference is the draw's."""
    photo, _ = training_data(samples, seed=3, epoch=5)[0]
    other, _ = training_data(samples, seed=seed, epoch=epoch)[index]
    assert not torch.equal(photo, other)


def test_a_photo_is_stretched_to_network_size_before_it_is_cropped(tmp_path: Path) -> None:
    """Aspect is not kept, in training as in deployment; the mask goes along by nearest neighbour."""
    truth = np.zeros((48, 16), np.uint8)
    truth[24:] = 2
    sample = Picture(tmp_path / "tall.png", tmp_path / "tall_mask.png")
    Image.fromarray(grey(truth)).save(sample.image)
    Image.fromarray(truth).save(sample.label)
    photo, stretched = TrainingData([sample], spec(), Augmentation((24, 32)), seed=0).pair(0)
    assert photo.shape == (24, 32, 3)
    np.testing.assert_array_equal(stretched, np.repeat([0, 2], 12)[:, None].repeat(32, axis=1))


def test_what_is_kept_in_memory_is_not_read_again(samples: list[Picture]) -> None:
    data = training_data(samples)
    photo, truth = data.pair(0)
    samples[0].image.unlink()
    again, its_truth = data.pair(0)
    assert again is photo
    assert its_truth is truth


def test_a_data_set_too_large_to_keep_is_read_again(samples: list[Picture], monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is on the whole set: two of these pairs are 2 x 24 x 32 x 4 bytes."""
    for limit, kept in ((2 * 24 * 32 * 4, True), (2 * 24 * 32 * 4 - 1, False)):
        monkeypatch.setattr("segdeploy.training.data.LARGEST_CACHE", limit)
        data = training_data(samples)
        assert (data.pair(0)[0] is data.pair(0)[0]) == kept
