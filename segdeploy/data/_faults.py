"""What can be wrong with the labels of a folder: one function for each fault, with what to do about it."""

import dataclasses
import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from segdeploy import artifact
from segdeploy.data._facts import Facts, Folder, label_of
from segdeploy.data.dataset import Classes, Dataset, Picture
from segdeploy.data.sizes import Size

MOST_IGNORED = 0.5  # of all pixels
BINARY = {0, 255}
_TURNED = {5, 6, 7, 8}  # EXIF orientations that make a standing image of a lying one

Severity = Literal["error", "warning"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something wrong: an error, or a warning that somebody may have reason for. `files`: those that show it."""

    severity: Severity
    name: str
    what: str
    remedy: str
    files: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True)
class Labels:
    """A labelled folder with the facts of its files. `network`: the classes of the one that is scored on it."""

    data: Dataset
    facts: Folder
    classes: Classes
    ignore_index: int
    network: Sequence[str] | None

    def pixels(self, pictures: Iterable[Picture]) -> Counter[int]:
        """How many pixels of each value the masks of some pictures have."""
        total: Counter[int] = Counter()
        for picture in pictures:
            total.update(dict(self.facts.of_mask(picture).pixels))
        return total

    @functools.cached_property
    def everywhere(self) -> Counter[int]:
        """How many pixels of each value all masks have."""
        return self.pixels(self.data.pictures)

    @property
    def share_ignored(self) -> float:
        return self.everywhere[self.ignore_index] / max(1, self.everywhere.total())

    def sizes(self) -> Iterator[tuple[Picture, Size, Size]]:
        """Each picture with the size of its image and of its mask, where both can be read."""
        for picture in self.data.pictures:
            photo, mask = self.facts.photos[picture.image].size, self.facts.of_mask(picture).size
            if photo is not None and mask is not None:
                yield picture, photo, mask

    @property
    def is_black_and_white(self) -> bool:
        return self.ignore_index in BINARY and set(self.everywhere) == BINARY


def of(labels: Labels) -> Iterator[Fault]:
    """Every fault that is there, each once."""
    for find in (
        _unreadable,
        _other_shape,
        _other_size,
        _turned,
        _strange_values,
        _void_throughout,
        _black_and_white,
        _absent_classes,
        _mostly_ignored,
        _other_classes,
        _shared_masks,
        _in_both_lists,
        _copies_in_both_lists,
        _listed_twice,
        _strays,
    ):
        yield from find(labels)


def _counted(files: Sequence[Path], one: str, many: str) -> str:
    return f"{len(files)} {one if len(files) == 1 else many}"


# Files


def _unreadable(labels: Labels) -> Iterator[Fault]:
    masks = [(path, facts) for (path, _), facts in labels.facts.masks.items()]
    for one, many, known in (("mask", "masks", masks), ("image", "images", list(labels.facts.photos.items()))):
        refused = [(path, facts.refused) for path, facts in known if facts.refused is not None]
        if refused:
            files = tuple(path for path, _ in refused)
            reason, remedy = refused[0][1].split("\n", 1)
            what = f"{_counted(files, one, many)} cannot be used, the first: {reason}"
            yield Fault(severity="error", name=f"unreadable-{one}", what=what, remedy=remedy, files=files)


def _strays(labels: Labels) -> Iterator[Fault]:
    if files := labels.data.strays:
        yield Fault(
            severity="warning",
            name="no-mask",
            what=f"{_counted(files, 'file lies', 'files lie')} among the masks and is no image, the first: {files[0]}.",
            remedy="Take it away: nothing reads it.",
            files=files,
        )


# Shapes


def _other_shape(labels: Labels) -> Iterator[Fault]:
    found = [(picture, photo, mask) for picture, photo, mask in labels.sizes() if not _same_shape(photo, mask)]
    if not found:
        return
    files = tuple(picture.label for picture, _, _ in found)
    picture, photo, mask = found[0]
    turned = photo.orientation in _TURNED and _same_shape(photo, Size(mask.width, mask.height, 1))
    why = f" that EXIF turns (orientation {photo.orientation})" if turned else ""
    yield Fault(
        severity="error",
        name="shape",
        what=f"{_counted(files, 'mask has', 'masks have')} another shape than the photo, the first: {picture.label} is "
        f"{mask.height}x{mask.width}, {picture.image.name}{why} is {photo.height}x{photo.width}.",
        remedy="Turn the mask as its photo is turned." if turned else "Bring the mask of this very photo.",
        files=files,
    )


def _same_shape(photo: Size, mask: Size) -> bool:
    """Whether a mask is the photo in another scale, to the pixel that rounding costs."""
    scale = min(mask.height / photo.height, mask.width / photo.width)
    return abs(mask.height - photo.height * scale) <= 1 and abs(mask.width - photo.width * scale) <= 1


def _other_size(labels: Labels) -> Iterator[Fault]:
    found = [each for each in labels.sizes() if each[1][:2] != each[2][:2] and _same_shape(each[1], each[2])]
    if not found:
        return
    files = tuple(picture.label for picture, _, _ in found)
    picture, photo, mask = found[0]
    yield Fault(
        severity="warning",
        name="size",
        what=f"{_counted(files, 'mask has', 'masks have')} another size than the photo, the first: {picture.label} is "
        f"{mask.height}x{mask.width}, {picture.image.name} is {photo.height}x{photo.width}.",
        remedy="Bring masks of the photo's size: scores are counted at the size of the masks.",
        files=files,
    )


def _turned(labels: Labels) -> Iterator[Fault]:
    """Photos that EXIF turns so that their size does not tell whether the mask was drawn on the turned one."""
    files, evident = [], False
    for picture, photo, mask in labels.sizes():
        if photo.orientation == mask.orientation or not _same_shape(photo, mask):
            continue
        if photo.orientation in _TURNED and photo.height != photo.width:
            evident = True  # the mask stands as the photo does: who drew it saw it upright
        elif photo.orientation != 1:
            files.append(picture.label)
    if files and not evident:
        yield Fault(
            severity="warning",
            name="turned",
            what=f"EXIF turns {_counted(files, 'photo', 'photos')} and not the mask, the first: {files[0]}; the size "
            "does not tell whether it was drawn on the upright photo.",
            remedy="Look at it, and turn it where it was not.",
            files=tuple(files),
        )


# Values


def _strange_values(labels: Labels) -> Iterator[Fault]:
    count = len(labels.network or labels.classes.names)
    allowed = {*range(count), labels.ignore_index}
    found = [(mask, _strange(facts, allowed)) for (mask, _), facts in labels.facts.masks.items()]
    strange = [(mask, value) for mask, value in found if value is not None]
    if strange:
        files = tuple(mask for mask, _ in strange)
        owner = "the folder names" if labels.network is None else "the network has"
        yield Fault(
            severity="error",
            name="strange-class",
            what=f"{files[0]} has class {strange[0][1]}; {owner} {count} classes and ignores {labels.ignore_index}."
            + (f" So have {len(files) - 1} more masks." if len(files) > 1 else ""),
            remedy="Give masks with these class indices, or name the index to ignore.",
            files=files,
        )


def _strange(facts: Facts, allowed: set[int]) -> int | None:
    return next((value for value, _ in facts.pixels if value not in allowed), None)


def _void_throughout(labels: Labels) -> Iterator[Fault]:
    for part, pictures in (("train", labels.data.train), ("validate", labels.data.val)):
        if set(labels.pixels(pictures)) == {labels.ignore_index}:
            yield Fault(
                severity="error",
                name="all-void",
                what=f"every pixel of the masks that {part} is {labels.ignore_index}, which is ignored.",
                remedy="Bring masks with classes in them, or name another index to ignore.",
                files=tuple(picture.label for picture in pictures),
            )


def _black_and_white(labels: Labels) -> Iterator[Fault]:
    if labels.is_black_and_white:
        yield Fault(
            severity="error",
            name="black-and-white",
            what=f"the masks hold 0 and 255 alone, and {labels.ignore_index} is ignored: one class is left.",
            remedy="Write the second class as 1; with both colours in classes.csv: segdeploy data convert",
        )


def _absent_classes(labels: Labels) -> Iterator[Fault]:
    """A class without a pixel scores nothing, and takes its share of every prediction."""
    own = labels.classes.named or labels.network is None
    if not own or labels.is_black_and_white:
        return
    everywhere, training = labels.everywhere, labels.pixels(labels.data.train)
    names = [(index, name) for index, name in enumerate(labels.classes.names) if index != labels.ignore_index]
    absent = [name for index, name in names if not everywhere[index]]
    unseen = [name for index, name in names if everywhere[index] and training and not training[index]]
    said = f"{labels.classes.source} names" if labels.classes.named else "the masks leave out"
    if absent:
        yield Fault(
            severity="warning",
            name="absent-class",
            what=f"no pixel is of {_listed(absent)}: {said} {'it' if len(absent) == 1 else 'them'}.",
            remedy="Bring images that show them, or number the classes without gaps.",
        )
    if unseen:
        yield Fault(
            severity="warning",
            name="unseen-class",
            what=f"no training image shows {_listed(unseen)}; validation images do.",
            remedy="Divide the images anew: train.txt, val.txt.",
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more classes" if len(names) > 5 else shown  # noqa: PLR2004 - in a line


def _mostly_ignored(labels: Labels) -> Iterator[Fault]:
    share = labels.share_ignored
    if MOST_IGNORED < share < 1 and not labels.is_black_and_white:
        yield Fault(
            severity="warning",
            name="mostly-ignored",
            what=f"{share:.1%} of all pixels are {labels.ignore_index}, which is ignored: scores are of the rest.",
            remedy="Give them their class, or name another index to ignore.",
        )


def _other_classes(labels: Labels) -> Iterator[Fault]:
    if labels.network is None or not labels.classes.named or labels.classes.names == tuple(labels.network):
        return
    yield Fault(
        severity="warning",
        name="other-classes",
        what=f"{labels.classes.source} names {_listed(labels.classes.names)}; the network's classes are "
        f"{_listed(labels.network)}.",
        remedy="Give masks and classes.csv in the order of the network's classes.",
    )


# Lists


def _shared_masks(labels: Labels) -> Iterator[Fault]:
    images = defaultdict(set)
    for picture in labels.data.pictures:
        images[label_of(picture)].add(picture.image.name)
    shared = {mask: sorted(names) for (mask, _), names in images.items() if len(names) > 1}
    files = tuple(shared)
    if files:
        yield Fault(
            severity="warning",
            name="shared-mask",
            what=f"{_counted(files, 'mask belongs', 'masks belong')} to more than one image, the first: {files[0]} to "
            f"{' and '.join(shared[files[0]])}.",
            remedy="Rename an image and its mask, or name the masks in a second column of the lists.",
            files=files,
        )


def _in_both_lists(labels: Labels) -> Iterator[Fault]:
    training = {picture.image for picture in labels.data.train}
    files = tuple(dict.fromkeys(picture.image for picture in labels.data.val if picture.image in training))
    if files:
        yield Fault(
            severity="warning",
            name="in-both-lists",
            what=f"{_counted(files, 'image', 'images')} both train and validate, the first: {files[0].name}.",
            remedy="Take it out of one list: a score on what was learnt says nothing.",
            files=files,
        )


def _copies_in_both_lists(labels: Labels) -> Iterator[Fault]:
    training = {picture.image for picture in labels.data.train}
    copies = _copies(training, {picture.image for picture in labels.data.val} - training)
    if files := tuple(copies):
        yield Fault(
            severity="warning",
            name="copy-in-both-lists",
            what=f"{_counted(files, 'validation image is', 'validation images are')} copied from what trains, "
            f"the first: {files[0].name} of {copies[files[0]].name}.",
            remedy="Take one of them out of its list: a score on what was learnt says nothing.",
            files=files,
        )


def _copies(training: set[Path], val: set[Path]) -> dict[Path, Path]:
    """What validates and has the bytes of what trains, with that; only files that share a length are read."""
    lengths = {image: image.stat().st_size for image in (*training, *val)}
    shared = {lengths[image] for image in training} & {lengths[image] for image in val}
    known = {artifact.sha256(image): image for image in sorted(training, reverse=True) if lengths[image] in shared}
    digests = {image: artifact.sha256(image) for image in sorted(val) if lengths[image] in shared}
    return {image: known[digest] for image, digest in digests.items() if digest in known}


def _listed_twice(labels: Labels) -> Iterator[Fault]:
    for part, pictures in (("train", labels.data.train), ("val", labels.data.val)):
        counts = Counter(picture.image for picture in pictures)
        files = tuple(image for image, count in counts.items() if count > 1)
        if files:
            yield Fault(
                severity="warning",
                name="listed-twice",
                what=f"{_counted(files, 'image is', 'images are')} twice in {part}.txt, the first: {files[0].name}.",
                remedy="Name each image once.",
                files=files,
            )
