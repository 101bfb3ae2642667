"""Whether labels fit their images: said before the first epoch, the first score and the first proof.

docs/data.md says which faults are errors and which are warnings, which `force` lets pass.
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from segdeploy.artifact import Artifact
from segdeploy.data import _facts, _faults, layouts
from segdeploy.data._faults import Fault, Labels
from segdeploy.data.dataset import Classes, DataFolder, Dataset
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.progress import Progress, silent

MOST_SHOWN = 32  # classes in a line
MOST_SIZES = 3

log = logging.getLogger("segdeploy")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClassShare:
    """A class with its pixels, and their share of all pixels that are not ignored."""

    name: str
    pixels: int
    share: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageSize:
    """How many images have this size, in pixels, upright."""

    height: int
    width: int
    images: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """What a labelled folder holds, and what is wrong with it.

    `layout`: how it is laid out. `images` counts those of the folder, `train` and `val` those with a mask that take
    part. `ignored`: share of all pixels. `faults`: errors first; a warning may be meant.
    """

    schema: Literal[1] = 1
    data: Path
    layout: str
    images: int
    train: int
    val: int
    listed: bool
    classes: tuple[ClassShare, ...]
    ignored: float
    sizes: tuple[ImageSize, ...]
    faults: tuple[Fault, ...]

    def header(self) -> Iterator[str]:
        """Images, pairs, split, sizes and classes, in three lines."""
        split = "as the folder says" if self.listed else "every tenth validates"
        pairs = f"{self.train + self.val} with masks: {self.train} train, {self.val} val ({split})"
        yield f"{self.data}, layout {self.layout}: {self.images} images, {pairs}"
        sizes = [f"{each.height}x{each.width} ({each.images})" for each in self.sizes[:MOST_SIZES]]
        more = len(self.sizes) - MOST_SIZES
        yield f"  sizes: {', '.join([*sizes, *([f'{more} others'] if more > 0 else [])])}"
        classes = [f"{each.name} {each.share:.1%}" for each in self.classes[:MOST_SHOWN]]
        more = len(self.classes) - MOST_SHOWN
        named = ", ".join([*classes, *([f"{more} others"] if more > 0 else [])])
        yield f"  classes: {named}; ignored {self.ignored:.1%}"

    def stopping(self, *, force: bool) -> list[Fault]:
        """The faults that stop a command; `force` lets warnings pass."""
        return [fault for fault in self.faults if fault.severity == "error" or not force]


def check(
    root: Path | DataFolder,
    *,
    ignore_index: int = 255,
    network: Sequence[str] | None = None,
    progress: Progress = silent,
) -> DataReport:
    """Everything that can be said of a labelled folder. `network`: the classes of the one that is scored on it.

    Raise SegdeployError where it cannot be opened: an image without a mask, a list that names what is not there.
    """
    data = layouts.open_folder(root)
    facts = _facts.of(data, ignore_index=ignore_index, progress=progress)
    labels = Labels(data, facts, _classes(data, ignore_index, network), ignore_index, network)
    return DataReport(
        data=data.root,
        layout=data.layout,
        images=len({picture.image for picture in data.pictures}) + data.unlisted,
        train=len(data.train),
        val=len(data.val),
        listed=data.has_val_list,
        classes=tuple(_shares(labels)),
        ignored=labels.share_ignored,
        sizes=tuple(_sizes(facts)),
        faults=tuple(sorted(_faults.of(labels), key=lambda fault: fault.severity)),
    )


def require_for(file: Artifact, root: Path | DataFolder | None, *, force: bool, progress: Progress = silent) -> None:
    """Do as `require`, for what is scored on a folder; one without masks has no faults.

    A network of random weights has classes in name only.
    """
    if root is not None and layouts.is_labelled(root):
        network = None if file.has_random_weights else file.spec.classes
        require(root, ignore_index=file.spec.ignore_index, network=network, force=force, progress=progress)


def require(
    root: Path | DataFolder,
    *,
    ignore_index: int,
    network: Sequence[str] | None = None,
    force: bool,
    progress: Progress = silent,
) -> None:
    """Say what a labelled folder holds, and raise InvalidFileError at its faults; `force` lets warnings pass, said."""
    report = check(root, ignore_index=ignore_index, network=network, progress=progress)
    for line in report.header():
        log.info("%s", line)
    stopping = report.stopping(force=force)
    for fault in report.faults:
        if fault not in stopping:
            log.warning("Warning: %s", fault.what)
    if stopping:
        raise refusal(stopping, report.data)


def refusal(faults: Sequence[Fault], root: Path) -> InvalidFileError:
    """The first fault as an error, how many others there are, and whether all may be meant."""
    what, remedy = faults[0].what, faults[0].remedy
    if more := len(faults) - 1:
        what = f"{what} There {'is 1 more fault' if more == 1 else f'are {more} more faults'}."
        remedy = f"{remedy} All of them: segdeploy data check {root}"
    if all(fault.severity == "warning" for fault in faults):
        remedy = f"{remedy} Where it is meant so: --force"
    return InvalidFileError(what, remedy)


def _classes(data: Dataset, ignore_index: int, network: Sequence[str] | None) -> Classes:
    """Those that the folder names, else those of the network, else as many as the masks have."""
    try:
        found = layouts.classes_of(data, ignore_index=ignore_index)
    except InvalidRequestError:
        if network is None:
            raise
        return Classes(tuple(network), (), named=False)
    return found if found.named or network is None else Classes(tuple(network), (), named=False)


def _shares(labels: Labels) -> Iterator[ClassShare]:
    counted = labels.everywhere.total() - labels.everywhere[labels.ignore_index]
    for index, name in enumerate(labels.classes.names):
        pixels = 0 if index == labels.ignore_index else labels.everywhere[index]
        yield ClassShare(name=name, pixels=pixels, share=pixels / max(1, counted))


def _sizes(facts: _facts.Folder) -> Iterator[ImageSize]:
    """The commonest first."""
    counts = Counter(each.size[:2] for each in facts.photos.values() if each.size is not None)
    for (height, width), images in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        yield ImageSize(height=height, width=width, images=images)
