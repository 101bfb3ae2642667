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
        self._count = 0
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
        shares = np.asarray(areas, float) / max(1, sum(areas))
        with self._lock:
            place, distance = self._place(shares)
        if place is None and not distance:
            return
        card = Card(name, shares, photo.width / photo.height, self._picture(photo, class_map))
        with self._lock:
            if place is not None:
                self._sample[place] = card
            if distance:
                self._odd = sorted([*self._odd, (distance, card)], key=lambda each: -each[0])[:SHOWN]

    def _place(self, shares: NDArray[np.float64]) -> tuple[int | None, float]:
        """Its place in the sample, where it is chosen; and how unlike the rest it is, 0 where others are more so."""
        mean = self._sum / max(1, self._count)
        self._count += 1
        self._sum += shares
        place = self._count - 1 if self._count <= SHOWN else self._chance.randrange(self._count)
        distance = float(np.abs(shares - mean).sum()) if self._count > FEWEST else 0.0
        if shares.max() > NEARLY_ALL and self._count > FEWEST and mean.max() < NEARLY_ALL:
            distance += 2  # shares differ by 2 at most: what shows one class only comes first
        is_odd = len(self._odd) < SHOWN or distance > self._odd[-1][0]
        return (place if place < SHOWN else None), distance if is_odd else 0.0

    def _picture(self, photo: Photograph, class_map: NDArray[np.uint8]) -> bytes:
        scale = min(1, LONGEST_SIDE / max(photo.height, photo.width))
        height, width = (max(1, round(side * scale)) for side in (photo.height, photo.width))
        small = images.to_photo_size(class_map, height=height, width=width)
        return images.overlay_jpeg(photo.resized(height=height, width=width), small, self._colours, beside=True)


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
