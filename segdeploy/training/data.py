"""Samples for training: stretched to network size as in deployment, then flipped, scaled and cropped at random."""

import errno
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

from segdeploy import fitting, images
from segdeploy.data.dataset import Picture
from segdeploy.errors import MissingRuntimeError, SegdeployError
from segdeploy.spec import Spec
from segdeploy.training.options import Augmentation

LARGEST_CACHE = 2_000_000_000  # bytes of decoded pairs kept in memory; larger data sets are read again every epoch
SHARED_MEMORY = ("shared memory", "/torch_", "Bus error")  # what PyTorch says where there is too little
Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]
Batch = tuple[Tensor, Tensor]


class TrainingData(TorchDataset[tuple[Tensor, Tensor]]):
    """(image uint8 (h, w, 3), truth int64 (h', w')); random by (seed, epoch, index) alone, so a run can be resumed."""

    def __init__(self, samples: Sequence[Picture], spec: Spec, augmentation: Augmentation, *, seed: int) -> None:
        self.samples = samples
        self.spec = spec
        self.augmentation = augmentation
        self.seed = seed
        self.epoch = 0
        self._cache: dict[int, Pair] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, self.epoch, index))
        photo, truth = augmented(*self.pair(index), self.augmentation, self.spec, rng)
        return torch.tensor(photo), torch.tensor(truth, dtype=torch.int64)

    def __getitems__(self, indices: Sequence[int]) -> list[Batch] | SegdeployError:
        """The samples of a batch, or why there are none: PyTorch would make a traceback of an error that is raised."""
        try:
            return [self[index] for index in indices]
        except SegdeployError as error:
            return error

    def pair(self, index: int) -> Pair:
        """Image and truth, resized as the Spec says; kept in memory while the data set is small enough."""
        if index not in self._cache:
            pair = _fitted(self.samples[index], self.spec)
            if len(self) * (pair[0].nbytes + pair[1].nbytes) > LARGEST_CACHE:
                return pair
            self._cache[index] = pair
        return self._cache[index]

    def pairs(self) -> Iterator[Pair]:
        """Every pair in order; filling the cache on the way."""
        return (self.pair(index) for index in range(len(self)))


def loader(samples: TrainingData, *, batch: int, workers: int) -> "DataLoader[Batch]":
    """Whole batches of the samples in random order, read by so many processes."""
    return DataLoader(samples, batch, shuffle=True, drop_last=True, num_workers=workers, collate_fn=_collated)


def _collated(samples: list[Batch] | SegdeployError) -> Batch | SegdeployError:
    if isinstance(samples, SegdeployError):
        return samples
    batch: Batch = tuple(default_collate(samples))
    return batch


def batches(loader: "DataLoader[Batch]") -> Iterator[Batch]:
    """The batches of an epoch: (N, h, w, 3) uint8 and (N, h', w') int64.

    Raise what went wrong in the processes that read, and MissingRuntimeError where one of them was killed.
    """
    read: Iterator[Batch | SegdeployError] | None = None
    while True:
        try:
            read = read or iter(loader)
            batch = next(read, None)
        except (RuntimeError, OSError) as error:
            raise _worker_failure(error) from error
        if batch is None:
            return
        if isinstance(batch, SegdeployError):
            raise batch
        yield batch


def _worker_failure(error: Exception) -> Exception:
    """Two lines for a process that reads images and has ended or cannot start; any other error as it is."""
    text = str(error)
    if any(sign in text for sign in SHARED_MEMORY) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
        return MissingRuntimeError(
            "the processes that read images ran out of shared memory (/dev/shm).",
            "Give --workers 0, or more of it: docker run --shm-size=1g.",
        )
    if "DataLoader worker" in text and ("killed" in text or "exited" in text):
        return MissingRuntimeError(
            f"a process that reads images has ended: {text.splitlines()[0].rstrip('.')}.",
            "Give fewer --workers, or 0: the memory may have run out.",
        )
    return error


def _fitted(sample: Picture, spec: Spec) -> Pair:
    """An image resized as its Spec says (not at all for tiles), and its truth."""
    photo = images.read(sample.image)
    about = fitting.plan(spec, *photo.shape[:2])
    truth = sample.required_truth(classes=len(spec.classes), ignore_index=spec.ignore_index)
    return (
        images.to_network_size(photo, height=about.height, width=about.width),
        images.to_photo_size(truth, height=about.height, width=about.width),
    )


def augmented(
    photo: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    augmentation: Augmentation,
    spec: Spec,
    rng: np.random.Generator,
) -> Pair:
    """One random view: image (h, w, 3) with the network's margin mirrored around it, truth (h - 2m, w - 2m)."""
    if rng.random() < 0.5:  # noqa: PLR2004 - a coin
        photo, truth = photo[:, ::-1], truth[:, ::-1]
    if augmentation.flip_vertically and rng.random() < 0.5:  # noqa: PLR2004 - a coin
        photo, truth = photo[::-1], truth[::-1]
    factor = float(np.exp(rng.uniform(*np.log(augmentation.scale))))
    photo, truth = _scaled(photo, truth, factor)
    height, width = (side - 2 * spec.margin for side in augmentation.crop)
    photo, truth = _padded(photo, truth, height, width, spec)
    top = int(rng.integers(truth.shape[0] - height + 1))
    left = int(rng.integers(truth.shape[1] - width + 1))
    photo, truth = (plane[top : top + height, left : left + width] for plane in (photo, truth))
    return fitting.with_margin(photo, spec.margin), truth


def _scaled(photo: NDArray[np.uint8], truth: NDArray[np.uint8], factor: float) -> Pair:
    size = (max(1, round(photo.shape[1] * factor)), max(1, round(photo.shape[0] * factor)))
    resized = Image.fromarray(np.ascontiguousarray(photo)).resize(size, Image.Resampling.BILINEAR)
    indices = Image.fromarray(np.ascontiguousarray(truth)).resize(size, Image.Resampling.NEAREST)
    return np.asarray(resized), np.asarray(indices)


def _padded(photo: NDArray[np.uint8], truth: NDArray[np.uint8], height: int, width: int, spec: Spec) -> Pair:
    """At least height x width: a colour around the image, the ignored index around the truth.

    The colour is that around letterboxed photographs where they are, else the mean.
    """
    down, right = max(0, height - truth.shape[0]), max(0, width - truth.shape[1])
    if down == right == 0:
        return photo, truth
    canvas = np.empty((truth.shape[0] + down, truth.shape[1] + right, 3), np.uint8)
    canvas[:] = spec.fill if spec.fit == "letterbox" else np.round(255 * np.asarray(spec.mean)).astype(np.uint8)
    labels = np.full(canvas.shape[:2], spec.ignore_index, np.uint8)
    top, left = down // 2, right // 2
    canvas[top : top + truth.shape[0], left : left + truth.shape[1]] = photo
    labels[top : top + truth.shape[0], left : left + truth.shape[1]] = truth
    return canvas, labels
