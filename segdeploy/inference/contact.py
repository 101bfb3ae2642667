"""A page of what a run did: what failed, what looks odd, and some of the rest, photo beside overlay."""

import base64
import dataclasses
import html
import random
import threading
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from segdeploy import images
from segdeploy.images import Photograph
from segdeploy.inference.report import Failure, Report
from segdeploy.paths import shown
from segdeploy.spec import Spec

SHOWN = 12  # images of each section
FAILURES = 200
NEARLY_ALL = 0.999  # of an image: it shows one class only
FEWEST = 8  # images before anything can be unlike the rest
LONGEST_SIDE = 320  # pixels of a picture in the page
NARROWEST, WIDEST = 0.25, 4.0  # as a photo is shown, width by height
_CLASSES = 4  # named under a picture


@dataclasses.dataclass(frozen=True, slots=True)
class Card:
    """One image: `picture` is a JPEG of photo and overlay, side by side; `ratio` is the photo's width by its height."""

    name: str
    shares: NDArray[np.float64]
    ratio: float
    picture: bytes


class Sheet:
    """Chooses what a page shows while images are segmented; it holds a few pictures, however many images there are.

    A sample of all, and those whose classes have the most unusual shares so far. It serves several threads.
    """

    def __init__(self, colours: images.Colours) -> None:
        """`colours`: of the classes of the network."""
        self._colours = colours
        self._lock = threading.Lock()
        self._count = 0  # of images that were offered to the sample
        self._looked = 0  # of images whose shares are in the sum
        self._sum = np.zeros(len(colours))
        self._chance = random.Random(0)  # noqa: S311 - which images a page shows
        self._sample: dict[int, Card] = {}  # by place: threads end in any order
        self._odd: list[tuple[float, Card]] = []  # the most unusual first

    @property
    def sample(self) -> list[Card]:
        return [card for _, card in sorted(self._sample.items())]

    @property
    def odd(self) -> list[Card]:
        """The most unusual first."""
        return [card for _, card in self._odd]

    def look(self, name: str, areas: Sequence[int], photo: Photograph, class_map: NDArray[np.uint8]) -> None:
        """`class_map` (h, w), of any size: what the network drew of the photo. `areas`: the photo's pixels by class."""
        shares = _shares(areas)
        with self._lock:
            place = self._sampled()
            distance = self._distance(shares)
        if place is None and not distance:
            return
        self._show(_card(name, shares, photo, class_map, self._colours), place, distance)

    def wish(self) -> "Wish":
        """What would be shown of the next image, for a process that segments it elsewhere; `show` takes its answer."""
        with self._lock:
            return Wish(self._colours, self._sampled(), self._looked, tuple(self._mean()), self._least())

    def show(self, wish: "Wish", areas: Sequence[int], card: Card | None) -> None:
        """Count an image that was segmented elsewhere, and show its card where there is one."""
        with self._lock:
            distance = self._distance(_shares(areas))
        if card is not None:
            self._show(card, wish.place, distance)

    def _show(self, card: Card, place: int | None, distance: float) -> None:
        with self._lock:
            if place is not None:
                self._sample[place] = card
            if distance:
                self._odd = sorted([*self._odd, (distance, card)], key=lambda each: -each[0])[:SHOWN]

    def _sampled(self) -> int | None:
        """Its place in the sample, where it is chosen."""
        self._count += 1
        place = self._count - 1 if self._count <= SHOWN else self._chance.randrange(self._count)
        return place if place < SHOWN else None

    def _mean(self) -> NDArray[np.float64]:
        return self._sum / max(1, self._looked)

    def _least(self) -> float:
        """How unlike the rest an image must be to be shown for that."""
        return 0.0 if len(self._odd) < SHOWN else self._odd[-1][0]

    def _distance(self, shares: NDArray[np.float64]) -> float:
        """How unlike the rest it is, 0 where others are more so; it is one of the rest from then on."""
        distance = _distance(shares, self._mean(), self._looked)
        self._looked += 1
        self._sum += shares
        return distance if distance > self._least() else 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Wish:
    """What a page would show of an image, by the images that were segmented when it was begun.

    `place`: its own in the sample, None where it is not chosen. `looked`: how many images `mean`, their shares, is of.
    `least`: how unlike them it must be to be shown for that.
    """

    colours: images.Colours
    place: int | None
    looked: int
    mean: tuple[float, ...]
    least: float

    def card(self, name: str, areas: Sequence[int], photo: Photograph, class_map: NDArray[np.uint8]) -> Card | None:
        """The card, as `Sheet.look` would make it; None where the page does not show the image."""
        shares = _shares(areas)
        if self.place is None and _distance(shares, np.array(self.mean), self.looked) <= self.least:
            return None
        return _card(name, shares, photo, class_map, self.colours)


def _shares(areas: Sequence[int]) -> NDArray[np.float64]:
    return np.asarray(areas, float) / max(1, sum(areas))


def _distance(shares: NDArray[np.float64], mean: NDArray[np.float64], looked: int) -> float:
    """How far shares are from those of the images before; 0 for the first few."""
    if looked < FEWEST:
        return 0.0
    distance = float(np.abs(shares - mean).sum())
    # Shares differ by 2 at most: what shows one class only comes first.
    return distance + 2 if shares.max() > NEARLY_ALL and mean.max() < NEARLY_ALL else distance


def _card(
    name: str,
    shares: NDArray[np.float64],
    photo: Photograph,
    class_map: NDArray[np.uint8],
    colours: images.Colours,
) -> Card:
    scale = min(1, LONGEST_SIDE / max(photo.height, photo.width))
    height, width = (max(1, round(side * scale)) for side in (photo.height, photo.width))
    small = images.to_photo_size(class_map, height=height, width=width)
    picture = images.overlay_jpeg(photo.resized(height=height, width=width), small, colours, beside=True)
    return Card(name, shares, photo.width / photo.height, picture)


def page(report: Report, sheet: Sheet, spec: Spec) -> str:
    """The whole page: it needs no network and no other file."""
    return "\n".join(_page(report, sheet, spec))


def _page(report: Report, sheet: Sheet, spec: Spec) -> Iterator[str]:
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>{_text(report.model)}: {report.done} images</title>"
    yield f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>"
    yield f"<h1>{_text(report.model)}: {report.done:,} images segmented</h1><p>"
    yield _text(
        f"{report.runtime}:{report.precision} on {report.device}, {report.images_per_s:.1f} images/s. "
        f"{report.unchanged:,} unchanged, {report.left:,} left to do, {len(report.failed):,} failed, "
        f"{len(report.failed_before):,} failed before. Each picture: the photo, and beside it its classes; "
        "shares are of the photo."
    )
    yield "<p>" + " ".join(f"<a href={name}>{name}</a>" for name in ("summary.json", "failed.jsonl", "areas.csv"))
    yield "<p class=legend>"
    for name, colour in zip(spec.classes, spec.colours, strict=True):
        yield f"<span><i style='background:rgb{tuple(colour)}'></i>{_text(name)}</span>"
    yield from _failures([*report.failed, *report.failed_before])
    yield from _cards(
        "Unlike the rest", "Their classes have the most unusual shares: look at them first.", sheet.odd, spec
    )
    yield from _cards("A sample", "Chosen at random among those of this run.", sheet.sample, spec)
    yield "</html>"


def _failures(failures: Sequence[Failure]) -> Iterator[str]:
    if failures:
        yield f"<h2>Failed: {len(failures):,}</h2><ul>"
        yield from (f"<li>{_text(failure.reason)}" for failure in failures[:FAILURES])
        more = len(failures) - FAILURES
        yield f"</ul><p>and {more:,} more in failed.jsonl" if more > 0 else "</ul>"


def _cards(title: str, said: str, cards: Iterable[Card], spec: Spec) -> Iterator[str]:
    cards = list(cards)
    if not cards:
        return
    yield f"<h2>{_text(title)}</h2><p>{_text(said)}</p><div class=cards>"
    for card in cards:
        largest = np.argsort(-card.shares, kind="stable")[:_CLASSES]
        ratio = min(max(card.ratio, NARROWEST), WIDEST)
        shares = ", ".join(f"{spec.classes[index]} {card.shares[index]:.1%}" for index in largest if card.shares[index])
        data = base64.b64encode(card.picture).decode()
        yield (
            f"<figure><img alt='' style='aspect-ratio:{2 * ratio:.4f}' src='data:image/jpeg;base64,{data}'>"
            f"<figcaption><b>{_text(card.name)}</b><br>{_text(shares)}</figcaption></figure>"
        )
    yield "</div>"


def _text(text: str) -> str:
    return html.escape(shown(text))


_STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.legend span { margin-right: 1rem; white-space: nowrap; }
.legend i { display: inline-block; width: .9em; height: .9em; margin-right: .35em; border: 1px solid #8888; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem; }
figure { margin: 0; } img { width: 100%; } figcaption, li { overflow-wrap: anywhere; font-size: .85rem; }
"""
