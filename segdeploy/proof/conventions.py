"""Which preprocessing a network was trained with, found on labelled images: the customary ones, best first."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segdeploy import fitting, images, metrics
from segdeploy.data.dataset import Picture
from segdeploy.errors import InvalidRequestError
from segdeploy.graphs import reading
from segdeploy.graphs.original import Original
from segdeploy.origin import GraphReading, Preprocessing
from segdeploy.proof import accuracy
from segdeploy.proof.samples import FileSamples
from segdeploy.spec import IMAGENET_MEAN, IMAGENET_STD, Spec

CAFFE = (103.939, 116.779, 123.68)  # ImageNet's mean in BGR, of pixels in 0..255
LARGEST = 255  # of a pixel
AHEAD = 0.001  # of mIoU: what is nearer than this is the same
RESAMPLES, SURE = 200, 0.95  # of the images, drawn again and again: how often the best has to be ahead
NOTABLE = 0.01  # of mIoU: what is worth saying
LEAST = 0.2  # mIoU of the best: below it none is right
MOST_IMAGES = 16
PRESETS = {
    "0..1": Preprocessing(scale=1 / 255, mean=(0.0,) * 3, deviation=(1.0,) * 3),
    "-1..1": Preprocessing(scale=1 / 127.5, mean=(1.0,) * 3, deviation=(1.0,) * 3),
    "imagenet": Preprocessing(scale=1 / 255, mean=IMAGENET_MEAN, deviation=IMAGENET_STD),
    "0..255": Preprocessing(scale=1.0, mean=(0.0,) * 3, deviation=(1.0,) * 3),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Convention:
    """A customary preprocessing by its name; `letterboxed`: the image keeps its ratio, grey around it.

    `of_images`: its mean and deviation are those of the images that it is tried on.
    """

    name: str
    preprocessing: Preprocessing
    letterboxed: bool = False
    of_images: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
    """How a convention does on labelled images: mIoU in 0..1.

    `reversed_miou`: with the classes in reverse order. `is_alike`: these images do not tell it from the best that
    stretches; `is_ahead`: they say that it is better, as it may be where images are letterboxed.
    """

    convention: Convention
    miou: float
    reversed_miou: float
    is_alike: bool
    is_ahead: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """Every convention, best first. `chosen` is None where the best is not clearly ahead of all others."""

    scores: tuple[Score, ...]
    images: int

    @property
    def chosen(self) -> Convention | None:
        best = self.stretching[0]
        return best.convention if best.miou >= LEAST and not self.alike else None

    @property
    def alike(self) -> tuple[Score, ...]:
        """What cannot be told apart from the best that stretches."""
        return tuple(score for score in self.stretching[1:] if score.is_alike)

    @property
    def stretching(self) -> tuple[Score, ...]:
        """Those in which an image meets the network as its Spec says: stretched, unless another fit was asked for."""
        return tuple(score for score in self.scores if not score.convention.letterboxed)

    @property
    def letterboxed(self) -> Score | None:
        """The score with letterboxed images, where labels say that it is better than with stretched ones."""
        plain = self.stretching[0]
        for score in self.scores:
            if score.convention.letterboxed and score.is_ahead and score.miou - plain.miou >= NOTABLE:
                return score
        return None


def customary(channels: int) -> list[Convention]:
    """Those of fixed numbers, for networks of three channels or of one."""
    found = [Convention(name, how) for name, how in PRESETS.items()]
    found.append(Convention("min-max", dataclasses.replace(PRESETS["0..1"], stretched=True)))
    if channels == 1:
        grey = [_grey(each) for each in found if each.name != "imagenet"]
        return [
            *grey,
            Convention("imagenet grey", dataclasses.replace(grey[0].preprocessing, mean=(0.449,), deviation=(0.226,))),
        ]
    caffe = Preprocessing(scale=1.0, mean=CAFFE[::-1], deviation=(1.0,) * 3)
    return [both for each in (*found, Convention("caffe", caffe)) for both in (each, _in_bgr(each))]


def standardised(channels: int, pictures: Sequence[Picture]) -> list[Convention]:
    """By the mean and the deviation of images, and the same divided by 255 once more, as ESPNet's trainer has it."""
    order: Literal["rgb", "grey"] = "grey" if channels == 1 else "rgb"
    shown = [reading.channels_of(images.read(picture.image), order) for picture in pictures]
    mean, deviation = (
        np.mean([getattr(pixels, measure)(axis=(0, 1)) for pixels in shown], axis=0) for measure in ("mean", "std")
    )
    found = [
        Convention(name, _of_pixels(mean, deviation * divisor, order), of_images=True)
        for name, divisor in (("own mean", 1), ("own mean, /255", LARGEST))
    ]
    return found if channels == 1 else [both for each in found for both in (each, _in_bgr(each))]


def _of_pixels(
    mean: NDArray[np.float64], deviation: NDArray[np.float64], channels: Literal["rgb", "grey"]
) -> Preprocessing:
    means, deviations = (tuple(map(float, values)) for values in (mean, deviation.clip(1)))
    return Preprocessing(scale=1.0, mean=means, deviation=deviations, channels=channels)


def _grey(convention: Convention) -> Convention:
    how = convention.preprocessing
    return Convention(
        convention.name, dataclasses.replace(how, mean=how.mean[:1], deviation=how.deviation[:1], channels="grey")
    )


def _in_bgr(convention: Convention) -> Convention:
    """The same for a network that takes its channels in the other order, each with the numbers of its colour."""
    how = convention.preprocessing
    turned = dataclasses.replace(how, mean=how.mean[::-1], deviation=how.deviation[::-1], channels="bgr")
    return dataclasses.replace(convention, name=f"{convention.name} bgr", preprocessing=turned)


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """A network that runs, how it is read but for its preprocessing, and what it tells apart."""

    network: Original
    reading: GraphReading
    spec: Spec

    def counts(self, conventions: Iterable[Convention], picture: Picture) -> Iterator[metrics.Confusion]:
        """(K, K) pixel counts on one labelled picture, of each convention in its turn."""
        for letterboxed, alike in itertools.groupby(conventions, key=lambda each: each.letterboxed):
            spec = fitting.with_fit(self.spec, "letterbox") if letterboxed else self.spec
            sample = FileSamples([picture], spec).of(0)
            if sample.truth is None:
                raise InvalidRequestError(f"{picture.image} has no mask.", "Bring one, or leave the image out.")
            for convention in alike:
                drawn = self._drawn(convention, sample.image)[sample.inside]
                yield accuracy.against(sample.truth, drawn, spec)

    def _drawn(self, convention: Convention, image: NDArray[np.uint8]) -> metrics.ClassMap:
        """The class map (H, W) of an image at network size."""
        told = dataclasses.replace(self.reading, preprocessing=convention.preprocessing)
        found = self.network.run(told.input, reading.as_given(image, told), [told.output])[told.output]
        return reading.class_map(found, told, self.spec.height, self.spec.width)


def tried(subject: Subject, pictures: Sequence[Picture], *, done: Callable[[], None]) -> Table:
    """Score every customary preprocessing on labelled pictures; `done` is called after each of them."""
    channels = len(subject.reading.preprocessing.mean)
    every = [*customary(channels), *standardised(channels, pictures)]
    counts: dict[Convention, list[metrics.Confusion]] = {each: [] for each in every}
    for picture in pictures:
        for found, measured in zip(counts.values(), subject.counts(counts, picture), strict=True):
            found.append(measured)
        done()
    best = _best({convention: np.stack(found) for convention, found in counts.items()})
    if not best.of_images:
        counts = {convention: found for convention, found in counts.items() if not convention.of_images}
    if subject.spec.fit == "stretch":
        boxed = dataclasses.replace(best, name=f"{best.name} letterboxed", letterboxed=True)
        counts[boxed] = [measured for picture in pictures for measured in subject.counts([boxed], picture)]
    stacked = {convention: np.stack(found) for convention, found in counts.items()}
    scores = [_score(convention, found, stacked[best]) for convention, found in stacked.items()]
    ordered = sorted(scores, key=lambda score: (-score.miou, score.convention != best))
    return Table(tuple(ordered), len(pictures))


def _best(counts: Mapping[Convention, NDArray[np.int64]]) -> Convention:
    """The best of fixed numbers; the images' own mean only where it is clearly ahead of that."""
    fixed, own = (
        max((each for each in counts if each.of_images == of_images), key=lambda each: _miou(counts[each]))
        for of_images in (False, True)
    )
    return own if _is_behind(counts[fixed], counts[own]) else fixed


def _score(convention: Convention, counts: NDArray[np.int64], best: NDArray[np.int64]) -> Score:
    """Of the confusions (images, K, K) of a convention, and of the best one."""
    return Score(
        convention,
        _miou(counts),
        _miou(counts[:, :, ::-1]),
        is_alike=not _is_behind(counts, best),
        is_ahead=_is_behind(best, counts),
    )


def _is_behind(counts: NDArray[np.int64], best: NDArray[np.int64]) -> bool:
    """Whether the best is ahead on these images, and on nearly every draw of so many of them."""
    if _miou(best) - _miou(counts) < AHEAD:
        return False
    draws = np.random.default_rng(0).integers(0, len(best), (RESAMPLES, len(best)))
    return float(np.mean([_miou(best[draw]) > _miou(counts[draw]) for draw in draws])) >= SURE


def _miou(counts: NDArray[np.int64]) -> float:
    return metrics.miou(counts.sum(axis=0)) or 0.0


def remarks(table: Table) -> Iterator[str]:
    """What is worth saying of a table: what cannot be told apart, letterboxes, classes in another order."""
    plain = table.stretching[0]
    if names := [score.convention.name for score in table.alike]:
        yield f"{', '.join([plain.convention.name, *names])} cannot be told apart on {table.images} images"
    if said := letterboxes(table):
        yield said
    if plain.reversed_miou > plain.miou + NOTABLE:
        yield f"its classes seem to be in reverse order (mIoU {plain.reversed_miou:.3f} against {plain.miou:.3f})"
    if plain.convention.of_images:
        yield f"mean and deviation are those of {table.images} images here: those of its training are better, if known"


def letterboxes(table: Table) -> str | None:
    """What labels say of letterboxed images, where these are better than stretched ones."""
    boxed, plain = table.letterboxed, table.stretching[0]
    if boxed is None:
        return None
    scores = f"mIoU {boxed.miou:.3f} letterboxed, {plain.miou:.3f} stretched"
    return f"it was trained on letterboxed images, as it seems ({scores})"
