"""Train a network on a labelled folder."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import click

from segdeploy.cli import bars, options, rendering

ORDER = 10


@dataclasses.dataclass(frozen=True, slots=True)
class TrainReport:
    """The best checkpoint, and its mIoU on the validation images, in 0..1."""

    schema: Literal[1]
    checkpoint: Path
    epoch: int
    val_miou: float | None


_schedule = options.together(
    options.size("--crop", help="What the network sees of it in training. Default: all."),
    click.option("--epochs", default=50, show_default=True, type=click.IntRange(1)),
    click.option("--batch", default=8, show_default=True, type=click.IntRange(1)),
    click.option("--learning-rate", default=2e-3, show_default=True, type=click.FloatRange(0, min_open=True)),
    click.option("--weight-decay", default=1e-4, show_default=True, type=click.FloatRange(0)),
    click.option("--scale", nargs=2, default=(0.75, 1.5), show_default=True, type=click.FloatRange(0.1, 10)),
    click.option("--flip-vertically", is_flag=True, help="Where up and down mean nothing, as under a microscope."),
    click.option("--class-weights", type=click.Choice(["none", "median"]), default="none", show_default=True),
    click.option("--ignore-index", default=255, show_default=True, type=click.IntRange(0, 255)),
    click.option("--seed", default=0, show_default=True, type=click.IntRange(0)),
)
_machine = options.together(
    click.option("--workers", default=0, show_default=True, type=click.IntRange(0), help="Processes that read images."),
    click.option("--threads", type=click.IntRange(1), help="Threads of PyTorch. Default: all cores."),
    click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True),
)


@click.command(short_help=__doc__)
@options.required_model
@options.data(required=True, help="Labelled folder: images/ and masks/, or any other layout of docs/data.md.")
@options.variant
@options.size(default="256x256", show_default=True, help="Network input.")
@click.option(
    "--fit",
    type=click.Choice(["stretch", "letterbox", "tile", "auto"]),
    default="stretch",
    show_default=True,
    help="How images of another size meet the network (docs/folders.md).",
)
@_schedule
@_machine
@click.option("--out", default="checkpoints", show_default=True, type=options.FOLDER)
@click.option(
    "--name", help="What the network is called from then on, and its files in OUT. Default: the model's name."
)
@click.option(
    "--weights",
    metavar="FILE",
    help="ImageNet classifier that the encoder begins with: torchvision's ResNet or VGG-16, semseg's ResNet.",
)
@options.force
@click.option("--resume", is_flag=True, help="Go on from the last epoch of a run that was cut off.")
@options.as_json
def train(*, model: str, as_json: bool, **given: Any) -> None:  # noqa: ANN401 - the options above
    """Train a network: cross-entropy, flips, scale and crop, poly schedule, a checkpoint every epoch."""
    report = _train(model, **given)
    line = f"{report.checkpoint}: best after epoch {report.epoch}, {rendering.miou(report.val_miou)}"
    rendering.show(report, as_json=as_json, lines=[line])


def _train(
    model: str,
    *,
    size: tuple[int, int],
    crop: tuple[int, int] | None,
    scale: tuple[float, float],
    flip_vertically: bool,
    threads: int | None,
    epochs: int,
    **given: Any,  # noqa: ANN401 - of TrainOptions and of `train`, by the same names
) -> TrainReport:
    from segdeploy import api
    from segdeploy.checkpoints import checkpoint
    from segdeploy.training.options import Augmentation, TrainOptions

    _limit(threads)
    names = {field.name for field in dataclasses.fields(TrainOptions)}
    how = {name: given.pop(name) for name in names & given.keys()}
    augmentation = Augmentation(crop=crop or size, scale=scale, flip_vertically=flip_vertically)
    train_options = TrainOptions(augmentation, epochs=epochs, **how)
    with bars.show_training(epochs) as progress:
        best = api.train(
            model, size=size, options=train_options, progress=progress, checking=bars.show_progress, **given
        )
    training = checkpoint.read(best).origin.training
    assert training is not None  # noqa: S101 - training wrote it
    return TrainReport(1, best, training.epoch, training.val_miou)


def _limit(threads: int | None) -> None:
    """Let PyTorch use so many threads."""
    import torch

    from segdeploy import cores

    cores.limit_torch()
    if threads is not None:
        torch.set_num_threads(threads)


COMMAND = train
