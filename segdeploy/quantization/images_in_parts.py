"""Which images calibrate, which decide what stays in float32, and which prove: those that prove take no other part."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy import artifact, fitting, images
from segdeploy.data import dataset, layouts
from segdeploy.data.dataset import DataFolder, Picture
from segdeploy.errors import InvalidFileError, InvalidRequestError, SegdeployError
from segdeploy.origin import Calibration
from segdeploy.spec import Spec

if TYPE_CHECKING:
    from segdeploy.quantization.calibration import Batch

MOST_CALIBRATING = 128  # images: more change no range that matters, and calibration walks over them twice
MOST_RANKING = 64  # images: each layer of a ranking is measured on all of them


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """Which images take which part; those that prove take no other. `skipped`: files that cannot be read, and why."""

    calibrate: Sequence[Path]
    rank: Sequence[Picture]
    prove: Sequence[Picture]
    skipped: Mapping[Path, str] = dataclasses.field(default_factory=dict)


def parts_of(*, at_hand: Sequence[Picture], calibrate: Path | None, data: Path | DataFolder | None) -> Parts:
    """Divide images; those without labels by their bytes alone: sorted by sha256, even ones decide and odd ones prove.

    A labelled folder's validation images prove and its training images decide; where nothing trains, the folder is
    divided. `at_hand`: the images that come with the weights, which calibrate where no folder was given for it; where
    there are none either, what decides calibrates.
    """
    given = (_files(at_hand) or None) if calibrate is None else images_in(calibrate)
    skipped: Mapping[Path, str] = {}
    if data is not None:
        rank, prove = _divided_folder(data)
    elif given is not None:
        readable, skipped = _readable(_distinct(given)[: 2 * max(MOST_CALIBRATING, MOST_RANKING)])
        labelled = {} if calibrate is not None else {picture.image: picture for picture in at_hand}
        rank, prove = _divided([labelled.get(file, Picture(file, None)) for file in readable])
        given = None
    else:
        raise InvalidRequestError(
            "there are no images to calibrate, decide and prove on: own weights need images of their own.",
            "Give some like those the network will see: segdeploy export --calibrate DIR, or --data DIR with labels.",
        )
    if not rank or not prove:
        raise InvalidRequestError("one image is not enough: some decide, others prove.", "Give at least two images.")
    proving = {artifact.sha256(picture.image) for picture in prove}
    candidates = [picture.image for picture in rank] if given is None else given
    chosen = [file for file in _distinct(candidates) if artifact.sha256(file) not in proving]
    if not chosen:
        raise InvalidRequestError("every calibration image is also a proof image.", "Give others: --calibrate DIR")
    return Parts(chosen[:MOST_CALIBRATING], rank[:MOST_RANKING], prove, skipped)


def images_in(folder: Path) -> list[Path]:
    """The images of a folder, or of its `images/`; of those a `train.txt` names, where there is one."""
    if layouts.is_labelled(folder):
        return [sample.image for sample in layouts.open_folder(folder).train]
    if (folder / "images").is_dir():
        return dataset.image_files(folder)
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in images.EXTENSIONS)
    if not found:
        raise InvalidRequestError(f"{folder} has no images.", "Give a folder of photographs: --calibrate DIR")
    return found


def _divided_folder(data: Path | DataFolder) -> tuple[list[Picture], list[Picture]]:
    if not layouts.is_labelled(data):
        return _divided([Picture(image, None) for image in dataset.image_files(DataFolder.of(data).path)])
    labelled = layouts.open_folder(data)
    train, val = list(labelled.train), list(labelled.val)
    if not train:
        return _divided(val)
    proving = {artifact.sha256(picture.image) for picture in val}
    return [picture for sha256, picture in _by_sha256(train) if sha256 not in proving], val


def _divided(pictures: Sequence[Picture]) -> tuple[list[Picture], list[Picture]]:
    ordered = [picture for _, picture in _by_sha256(pictures)]
    return ordered[::2], ordered[1::2]


def _files(pictures: Sequence[Picture]) -> list[Path]:
    return [picture.image for picture in pictures]


def _by_sha256(pictures: Sequence[Picture]) -> list[tuple[str, Picture]]:
    """In the order of their images' bytes; of copies, one."""
    return sorted({artifact.sha256(picture.image): picture for picture in pictures}.items())


def _distinct(files: Sequence[Path]) -> list[Path]:
    return [picture.image for _, picture in _by_sha256([Picture(file, None) for file in files])]


def _readable(files: Sequence[Path]) -> tuple[list[Path], dict[Path, str]]:
    """The files that are images, and why the others are none. Raise InvalidFileError where all are others."""
    skipped = {}
    for file in files:
        try:
            images.read(file)
        except SegdeployError as error:
            skipped[file] = error.what
    readable = [file for file in files if file not in skipped]
    if not readable:
        raise _none_readable(skipped)
    return readable, skipped


def _none_readable(skipped: Mapping[Path, str]) -> InvalidFileError:
    return InvalidFileError(
        f"none of {len(skipped)} calibration images can be read: {next(iter(skipped.values()))}",
        "Give photographs: --calibrate DIR",
    )


class Photographs:
    """Walks over photographs as the network sees them, one at a time; those that cannot be read are left out."""

    def __init__(self, files: Sequence[Path], spec: Spec, skipped: Mapping[Path, str] | None = None) -> None:
        self._files = files
        self._spec = spec
        self.skipped = dict(skipped or {})

    def __len__(self) -> int:
        return len(self._files)

    def __call__(self) -> "Iterator[Batch]":
        for place, file in enumerate(self._files):
            try:
                photo = images.read(file)
            except SegdeployError as error:
                self.skipped[file] = error.what
                continue
            yield fitting.prepared(photo, self._spec, place)[None]
        if self.skipped.keys() >= set(self._files):
            raise _none_readable(self.skipped)

    def calibration(self, method: str) -> Calibration:
        """Names and hashes of what was used; what was left out, and why."""
        used = {file.name: artifact.sha256(file) for file in self._files if file not in self.skipped}
        skipped = {file.name: reason for file, reason in self.skipped.items()}
        return Calibration(method=method, images=used, skipped=skipped)
