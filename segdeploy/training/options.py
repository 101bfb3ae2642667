"""How to train: options that need no PyTorch to be named."""

import dataclasses

from segdeploy.errors import InvalidRequestError
from segdeploy.spec import Fit


@dataclasses.dataclass(frozen=True, slots=True)
class Augmentation:
    """`crop`: (height, width) of what the network sees in training; `scale`: the range the image is resized by."""

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.75, 1.5)
    flip_vertically: bool = False

    def __post_init__(self) -> None:
        if self.scale[0] > self.scale[1]:
            raise InvalidRequestError(
                f"the scale range {self.scale[0]:g} to {self.scale[1]:g} is empty.", "Give the smaller number first."
            )


@dataclasses.dataclass(frozen=True, slots=True)
class TrainOptions:
    """How to train. `learning_rate` falls to zero by (1 - t/T)^0.9, t the number of steps done of T.

    `fit`: how images of another size meet the network, as in `Spec`.

    `weights`: the file of an ImageNet classifier, torchvision's or semseg's, that the encoder begins with; it says
    depth and stem.
    """

    augmentation: Augmentation
    epochs: int = 50
    batch: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    class_weights: str = "none"
    seed: int = 0
    workers: int = 0
    device: str = "cpu"
    weights: str | None = None
    fit: Fit = "stretch"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """What one epoch came to, a line of the log: losses are means over the steps, scores in 0..1."""

    epoch: int
    loss: float
    learning_rate: float
    train_miou: float | None
    val_miou: float | None
    val_pixel_accuracy: float | None
    seconds: float


class SilentTraining:
    """A `TrainingProgress` that shows nothing."""

    def steps(self, total: int, done: int) -> None: ...
    def step(self, *, epoch: int, loss: float, miou: float | None) -> None: ...
    def epoch(self, record: EpochRecord) -> None: ...
