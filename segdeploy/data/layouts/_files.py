"""What layouts share: images found by what lists call them, paired with their masks, divided."""

import dataclasses
import itertools
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from segdeploy import images
from segdeploy.data import dataset
from segdeploy.data.dataset import Classes, Dataset, Picture, same_name
from segdeploy.data.readings import INDICES, MaskReading
from segdeploy.errors import InvalidFileError, InvalidRequestError

EACH_TENTH = 10  # picture validates where nothing says which
FEW = 16  # masks whose images are looked for, to recognise a layout
LOOKED_AT = 1000  # entries of a folder, at most, to recognise a layout


@dataclasses.dataclass(frozen=True, slots=True)
class Files:
    """The images of a folder, found by name, stem or path."""

    folder: Path
    files: Sequence[Path]
    by_name: dict[str, list[Path]] = dataclasses.field(default_factory=dict)
    by_stem: dict[str, list[Path]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for file in self.files:
            self.by_name.setdefault(same_name(file.name), []).append(file)
            self.by_stem.setdefault(same_name(file.stem), []).append(file)

    def find(self, text: str) -> Path | None:
        """The file that a word of a list names. Raise InvalidFileError where it may be two."""
        name = PurePosixPath(text.replace("\\", "/")).name
        same = self.by_name.get(same_name(name)) or self.by_stem.get(same_name(name)) or []
        exact = [file for file in same if file.name == name]
        found = exact or same
        if len(found) > 1:
            raise InvalidFileError(
                f"{text} may be {found[0].name} or {found[1].name} in {self.folder}.", "Name the file with its ending."
            )
        return found[0] if found and not self._is_elsewhere(text, found[0]) else None

    def _is_elsewhere(self, text: str, found: Path) -> bool:
        """Whether a path leads to another file than the one of that name here."""
        named = self.folder.parent / text
        return "/" in text and named.is_file() and not named.samefile(found)

    def of(self, photo: Path) -> Path | None:
        """The mask of an image that has its stem. Raise InvalidFileError where it may be two."""
        return self.of_stem(photo.stem, photo)

    def of_stem(self, stem: str, photo: Path) -> Path | None:
        """The mask of an image that has this stem. Raise InvalidFileError where it may be two."""
        found = self.by_stem.get(same_name(stem), [])
        if len(found) > 1:
            names = " and ".join(file.name for file in found)
            raise InvalidFileError(
                f"{self.folder} has {names} for {photo.name}.", "Take all but one away: one image has one mask."
            )
        return found[0] if found else None

    def strays(self, photos: "Files") -> list[Path]:
        """Files that are called like an image's mask and are none by their endings."""
        others = (file for file in dataset.files_in(self.folder) if not dataset.is_image(file))
        return [file for file in others if same_name(file.stem) in photos.by_stem]


def images_of(folder: Path) -> list[Path]:
    """The images in a folder, in the order of their names; none where there is no folder."""
    return [path for path in dataset.files_in(folder) if dataset.is_image(path)]


def require_images(folder: Path, root: Path, layout: str) -> Files:
    """The images of a folder that a layout needs. Raise InvalidRequestError where it has none."""
    if not (found := images_of(folder)):
        raise lacking(root, layout, f"images in {folder.relative_to(root)}/")
    return Files(folder, found)


def lacking(root: Path, layout: str, what: str) -> InvalidRequestError:
    """The error for a folder that is not whole."""
    return InvalidRequestError(
        f"{root} has no {what}, which the layout {layout} needs.",
        "Bring what is missing, or name another layout: --layout; docs/data.md shows each.",
    )


def first_image(folder: Path) -> Path | None:
    """Some image of a folder, without reading all of a long one."""
    return next(_some_images(folder), None)


def _some_images(folder: Path) -> Iterator[Path]:
    return (path for path in entries(folder) if dataset.is_image(path) and path.is_file())


def belong_together(photos: Path, masks: Path, *, suffix: str = "") -> bool:
    """Whether one of a few masks has the stem of an image, with the suffix behind it."""
    few = itertools.islice(_some_images(masks), FEW)
    stems = {mask.stem.removesuffix(suffix) for mask in few if mask.stem.endswith(suffix)}
    return any(_has_image(photos, unicodedata.normalize(form, stem)) for stem in stems for form in ("NFC", "NFD"))


def _has_image(folder: Path, stem: str) -> bool:
    endings = [case for ending in images.EXTENSIONS for case in (ending, ending.upper())]
    return any((folder / f"{stem}{ending}").is_file() for ending in endings)


def entries(folder: Path) -> Iterator[Path]:
    """Some of what lies in a folder, but litter; nothing where there is no folder that can be read."""
    try:
        with os.scandir(folder) as found:
            for _, entry in zip(range(LOOKED_AT), found, strict=False):
                if not dataset.is_litter(entry.name):
                    yield Path(entry.path)
    except OSError:
        return


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, but litter, in the order of their names."""
    return sorted(path for path in folder.glob("*") if path.is_dir() and not dataset.is_litter(path.name))


def paired(
    photos: Iterable[Path],
    masks: Files,
    *,
    suffix: str = "",
    stem_of: Callable[[Path], str] = lambda photo: photo.stem,
    reading: MaskReading = INDICES,
) -> tuple[Picture, ...]:
    """Each image with the mask of the stem `stem_of(image)` and `suffix`. Raise where an image has none, or two."""
    pairs = [(photo, masks.of_stem(f"{stem_of(photo)}{suffix}", photo)) for photo in photos]
    without = [photo for photo, mask in pairs if mask is None]
    if without:
        raise without_mask(without, f"{masks.folder.name}/{stem_of(without[0])}{suffix}.png")
    return tuple(Picture(photo, mask, reading) for photo, mask in pairs)


def without_mask(photos: Sequence[Path], mask: str) -> InvalidRequestError:
    """The error for images without a mask. `mask`: what the first one's would be called."""
    return InvalidRequestError(
        f"{len(photos)} images have no mask, the first is {photos[0].name}.",
        f"Put {mask} there, or leave the image out of the lists.",
    )


def divided(
    root: Path,
    train: Sequence[Picture],
    val: Sequence[Picture],
    *,
    classes: Classes | None = None,
    unlisted: int = 0,
    strays: Sequence[Path] = (),
) -> Dataset:
    """The pictures as their folder divides them; where it names none that validate, every tenth does."""
    listed = bool(val)
    if not listed:
        train, val = [each for index, each in enumerate(train) if index % EACH_TENTH], train[::EACH_TENTH]
    return Dataset(
        root,
        train=tuple(train),
        val=tuple(val),
        has_val_list=listed,
        unlisted=unlisted,
        strays=tuple(strays),
        classes=classes,
    )
