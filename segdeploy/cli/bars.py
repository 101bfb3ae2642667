"""Progress bars: on stderr, where that is a terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from segdeploy.cli import rendering

if TYPE_CHECKING:
    from rich.progress import Progress

    from segdeploy.training.options import EpochRecord


@contextlib.contextmanager
def show_progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A `segdeploy.progress.Progress` that draws a bar; silent where stderr is no terminal."""
    with _bar("[progress.description]{task.description}") as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)


@contextlib.contextmanager
def show_training(epochs: int) -> Iterator["TrainingBar"]:
    """The progress of a training of so many epochs; drawn from its first step on: what is done before has its own."""
    progress = _bar("{task.description}")
    try:
        yield TrainingBar(progress, epochs)
    finally:
        progress.stop()


def _bar(description: str) -> "Progress":
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = rendering.console(stderr=True)
    columns = (TextColumn(description), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not sys.stderr.isatty())  # FORCE_COLOR is no terminal


class TrainingBar:
    """A `TrainingProgress`: loss, mIoU and time left on a terminal; a line for each epoch everywhere."""

    def __init__(self, progress: "Progress", epochs: int) -> None:
        self._progress = progress
        self._task = progress.add_task("Training", total=None)
        self._epochs = epochs

    def steps(self, total: int, done: int) -> None:
        self._progress.start()
        self._progress.update(self._task, total=total, completed=done)

    def step(self, *, epoch: int, loss: float, miou: float | None) -> None:
        text = f"epoch {epoch}/{self._epochs}  loss {loss:.4f}  {rendering.miou(miou)}"
        self._progress.update(self._task, advance=1, description=text)

    def epoch(self, record: "EpochRecord") -> None:
        scores = f"loss {record.loss:.4f}  val {rendering.miou(record.val_miou)}"
        self._progress.console.print(f"epoch {record.epoch}/{self._epochs}  {scores}  {record.seconds:.0f} s")
