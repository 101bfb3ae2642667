"""Charts as inline SVG: colours are classes, so that a style sheet decides light and dark; all text is escaped."""

import dataclasses
import html
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

COLOURS = 8
SHAPES = {
    "fp32": "M-4.6 0a4.6 4.6 0 1 0 9.2 0a4.6 4.6 0 1 0 -9.2 0z",
    "fp16": "M-4.2 -4.2h8.4v8.4h-8.4z",
    "int8": "M0 -5.4l5.4 9.4h-10.8z",
    "other": "M0 -5.8l5.8 5.8l-5.8 5.8l-5.8 -5.8z",
}
WIDE_RANGE = 6  # times the smallest: above it an axis is logarithmic
LETTER, LINE = 6.3, 13  # pixels of a label, in the style sheet's 11.5 px
REACH = 7  # from the middle of a mark to its label
LEFT, RIGHT, TOP, BOTTOM, STRIP = 60, 14, 24, 40, 26

Box = tuple[float, float, float, float]


class Html(str):
    """Markup that Jinja2 takes as it is."""

    __slots__ = ()

    def __html__(self) -> str:
        return self


def tag(name: str, *children: str, **attributes: object) -> Html:
    """An element; text and attributes are escaped, `Html` is not. `class_` is class, `text_anchor` is text-anchor."""
    named = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    spelled = "".join(f' {key}="{html.escape(_short(value))}"' for key, value in named)
    inside = "".join(child if isinstance(child, Html) else html.escape(child) for child in children)
    return Html(f"<{name}{spelled}>{inside}</{name}>")


def _short(value: object) -> str:
    return f"{round(value, 2):g}" if isinstance(value, float) else str(value)


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """`y` is None where no accuracy was measured; `colour` counts networks.

    `hollow` marks other tools, `failed` what is not to be shipped and so never on the front.
    """

    x: float
    y: float | None
    label: str
    title: str
    colour: int
    shape: str
    hollow: bool = False
    failed: bool = False


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats: none is as fast and as accurate and better in one. Ordered by x."""
    kept: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        best = points[kept[-1]] if kept else None
        if best is None or points[index][1] > best[1] or points[index] == best:
            kept.append(index)
    return kept


@dataclasses.dataclass(frozen=True, slots=True)
class Axis:
    """From values `low` to `high` onto pixels `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        low, high, value = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.logarithmic:
            return [tick for tick in _decades(self.low, self.high) if self.low <= tick <= self.high]
        step = self.step()
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [index * step for index in range(first, last + 1)]

    def step(self) -> float:
        """1, 2 or 5 times a power of ten, so that about five fit."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)


def _decades(low: float, high: float) -> Iterator[float]:
    for exponent in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for factor in (1, 2, 5):
            yield factor * 10.0**exponent


def _axis(values: Sequence[float], start: float, end: float, *, room: float = 0.1) -> Axis:
    """Around all values, a little wider on both sides."""
    low, high = min(values), max(values)
    pad = max((high - low) * room, abs(high) * 1e-6, 1e-9) if high > low else max(abs(high) * 0.1, 1e-3)
    return Axis(low - pad, high + pad, start, end)


def _latency_axis(values: Sequence[float], start: float, end: float) -> Axis:
    low, high = min(values), max(values)
    if high / low > WIDE_RANGE:
        return Axis(low / 1.2, high * 1.2, start, end, logarithmic=True)
    axis = _axis(values, start, end)
    return dataclasses.replace(axis, low=max(axis.low, 0.0))


# Latency against accuracy


@dataclasses.dataclass(frozen=True, slots=True)
class Chart:
    """What a scatter shows besides its points. `percent`: accuracy is a share of pixels, not an mIoU."""

    title: str
    accuracy: str
    percent: bool
    width: int = 380
    height: int = 300


def scatter(points: Sequence[Point], chart: Chart) -> Html:
    """Every engine by latency and accuracy, and a stair through those that no other beats."""
    measured = [point for point in points if point.y is not None]
    strip = STRIP if len(measured) < len(points) else 0
    floor = chart.height - BOTTOM - strip
    x = _latency_axis([point.x for point in points], LEFT, chart.width - RIGHT)
    heights = [point.y for point in measured if point.y is not None] or [0.0, 1.0]
    y = _axis(heights, floor - 8, TOP + 4, room=0.12)
    best = _best(points)
    parts = [
        *_horizontal(x, chart, floor + strip),
        *_vertical(y, chart),
        *(_unmeasured_strip(chart, floor) if strip else ()),
        _stair(best, x, y),
        *_marked(points, best, x, y, floor=floor, chart=chart),
    ]
    told = f"{chart.title}. {len(points)} engines by latency and {chart.accuracy}; best: "
    label = told + (", ".join(point.label for point in best) or "none was measured")
    return _svg(chart.width, chart.height, *parts, label=label)


def _best(points: Sequence[Point]) -> list[Point]:
    fit = [(point, point.y) for point in points if point.y is not None and not point.failed]
    return [fit[index][0] for index in front([(point.x, height) for point, height in fit])]


def _svg(width: int, height: int, *parts: str, label: str) -> Html:
    return tag("svg", *parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=label, class_="chart")


def _horizontal(x: Axis, chart: Chart, floor: float) -> Iterator[Html]:
    yield tag("line", x1=LEFT, x2=chart.width - RIGHT, y1=floor, y2=floor, class_="axis")
    free = 0.0
    for tick in x.ticks():
        text, at = f"{tick:,.4g}", x.at(tick)
        if at - len(text) * LETTER / 2 < free:
            continue
        free = at + len(text) * LETTER / 2 + 4
        yield tag("line", x1=at, x2=at, y1=floor, y2=floor + 4, class_="axis")
        yield tag("text", text, x=at, y=floor + 17, text_anchor="middle")
    scale = ", logarithmic" if x.logarithmic else ""
    middle = (LEFT + chart.width - RIGHT) / 2
    yield tag("text", f"median ms{scale} (left is faster)", x=middle, y=floor + 34, text_anchor="middle", class_="of")


def _vertical(y: Axis, chart: Chart) -> Iterator[Html]:
    form = _tick_text(y, percent=chart.percent)
    for tick in y.ticks():
        if tick > 1 + 1e-12:
            continue
        at = y.at(tick)
        yield tag("line", x1=LEFT, x2=chart.width - RIGHT, y1=at, y2=at, class_="grid")
        yield tag("text", form(tick), x=LEFT - 6, y=at + 4, text_anchor="end")
    yield tag("text", f"{chart.accuracy} (up is better)", x=2, y=11, class_="of")


def _tick_text(axis: Axis, *, percent: bool) -> Callable[[float], str]:
    scale, unit = (100, "%") if percent else (1, "")
    decimals = max(0, -math.floor(math.log10(axis.step() * scale) + 1e-9))
    return lambda value: f"{value * scale:.{decimals}f}{unit}"


def _unmeasured_strip(chart: Chart, floor: float) -> Iterator[Html]:
    yield tag("line", x1=LEFT, x2=chart.width - RIGHT, y1=floor, y2=floor, class_="grid dashed")
    yield tag("text", "accuracy", x=LEFT - 6, y=floor + 11, text_anchor="end")
    yield tag("text", "unknown", x=LEFT - 6, y=floor + 22, text_anchor="end")


def _stair(best: Sequence[Point], x: Axis, y: Axis) -> Html:
    """Along the front: as accurate until the next is reached, then up to it, and on to the edge."""
    if not best:
        return Html()
    corners = [(x.at(point.x), y.at(point.y or 0.0)) for point in best]
    path = f"M{_short(corners[0][0])} {_short(corners[0][1])}"
    path += "".join(f"H{_short(across)}V{_short(up)}" for across, up in corners[1:])
    return tag("path", d=f"{path}H{_short(x.end)}", class_="front")


def _along_stair(best: Sequence[Point], x: Axis, y: Axis) -> Iterator[Box]:
    """Its treads and risers, which a label keeps clear of where it can."""
    corners = [(x.at(point.x), y.at(point.y or 0.0)) for point in best]
    for (left, up), (right, above) in itertools.pairwise(corners):
        yield (left, up - 1, right, up + 1)
        yield (right - 1, above, right + 1, up)
    for left, up in corners[-1:]:
        yield (left, up - 1, x.end, up + 1)


def _marked(
    points: Sequence[Point], best: Sequence[Point], x: Axis, y: Axis, *, floor: float, chart: Chart
) -> Iterator[Html]:
    """The marks, the front's last and so above the others, and as many labels as fit."""
    ordered = sorted(points, key=lambda point: (point in best, -point.x))
    places = [(x.at(p.x), floor + STRIP / 2 if p.y is None else y.at(p.y)) for p in ordered]
    for point, (across, up) in zip(ordered, places, strict=True):
        yield mark(point, across, up)
    taken = [(across - 5, up - 5, across + 5, up + 5) for across, up in places]
    stair = list(_along_stair(best, x, y))
    for point, place in zip(reversed(ordered), reversed(places), strict=True):
        width = len(point.label) * LETTER
        box = _free_box(place, width, [*taken, *stair], chart) or _free_box(place, width, taken, chart)
        if box is not None:
            taken.append(box)
            kind = "name best" if point in best else "name"
            yield tag("text", point.label, x=box[0], y=box[3] - 3, class_=kind)


def mark(point: Point, across: float = 0, up: float = 0) -> Html:
    kind = f"mark c{point.colour % COLOURS}{' hollow' if point.hollow else ''}{' failed' if point.failed else ''}"
    path = tag("path", d=SHAPES.get(point.shape, SHAPES["other"]))
    title = (tag("title", point.title),) if point.title else ()
    return tag("g", *title, path, transform=f"translate({_short(across)} {_short(up)})", class_=kind)


def _free_box(place: tuple[float, float], width: float, taken: Sequence[Box], chart: Chart) -> Box | None:
    """Where a label fits beside its mark, inside the chart and clear of marks and other labels."""
    for left, top in _beside(place, width):
        box = (left, top, left + width, top + LINE)
        inside = left >= LEFT and box[2] <= chart.width - 2 and top >= 0 and box[3] <= chart.height - BOTTOM
        if inside and not any(_cross(box, other) for other in taken):
            return box
    return None


def _beside(place: tuple[float, float], width: float) -> Iterator[tuple[float, float]]:
    across, up = place
    right, left, centre = across + REACH, across - REACH - width, across - width / 2
    above, middle, below = up - REACH - LINE + 3, up - LINE / 2, up + REACH - 2
    yield from ((right, middle), (left, middle), (centre, above), (centre, below))
    yield from ((right, above), (right, below), (left, above), (left, below))


def _cross(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def sample(colour: int, shape: str, *, hollow: bool = False) -> Html:
    """One mark by itself, for a legend or a table."""
    point = Point(0, 0, "", "", colour, shape, hollow)
    return tag("svg", mark(point, 8, 8), viewBox="0 0 16 16", class_="sample", aria_hidden="true")


# Bars


def bar(share: float, *, kind: str = "", interval: tuple[float, float] | None = None) -> Html:
    """A bar over `share` of the cell it stands in; the interval of its end as a line."""
    width = 100 * min(max(share, 0.0), 1.0)
    parts = [tag("rect", x=0, y=1, width=width, height=8)]
    if interval is not None:
        low, high = (100 * min(max(bound, 0.0), 1.0) for bound in interval)
        parts.append(tag("path", d=f"M{_short(low)} 5H{_short(high)}", class_="whisker"))
    return tag(
        "svg",
        *parts,
        viewBox="0 0 100 10",
        preserveAspectRatio="none",
        class_=f"bar {kind}".strip(),
        aria_hidden="true",
    )


def swatch(colour: Sequence[int]) -> Html:
    red, green, blue = (min(channel, 255) for channel in colour)
    square = tag("rect", x=0.5, y=0.5, width=11, height=11, rx=2, fill=f"rgb({red} {green} {blue})", class_="swatch")
    return tag("svg", square, viewBox="0 0 12 12", class_="sample", aria_hidden="true")


# The steps of a search


def steps(found: Sequence[tuple[float, float]], *, limit: float | None, loss: str, unit: str) -> Html:
    """Every step as (share of the work in low precision, loss), and the budget as a line."""
    chart = Chart("Search", loss, percent=False, width=480, height=240)
    floor = chart.height - BOTTOM
    x = _axis([share for share, _ in found], LEFT, chart.width - RIGHT)
    y = _axis([0.0, *(lost for _, lost in found), *([] if limit is None else [limit])], floor - 6, TOP + 4)
    path = "M" + "L".join(f"{_short(x.at(share))} {_short(y.at(lost))}" for share, lost in found)
    dots = [
        mark(
            Point(0, 0, "", f"step {index}: {share:.1%} in low precision, {lost:.3g}{unit}", 0, "fp32"),
            x.at(share),
            y.at(lost),
        )
        for index, (share, lost) in enumerate(found)
    ]
    lines = [*_step_axes(x, y, chart, unit), tag("path", d=path, class_="trail")]
    last = found[-1]
    label = f"{len(found)} steps; the last: {last[0]:.1%} of the work in low precision, {loss} {last[1]:.3g}{unit}"
    return _svg(chart.width, chart.height, *lines, *_budget(limit, y, chart), *dots, label=label)


def _step_axes(x: Axis, y: Axis, chart: Chart, unit: str) -> Iterator[Html]:
    floor = chart.height - BOTTOM
    decimals = max(0, -math.floor(math.log10(x.step() * 100) + 1e-9))
    for tick in (tick for tick in x.ticks() if 0 <= tick <= 1 + 1e-12):
        yield tag("text", f"{100 * tick:.{decimals}f}%", x=x.at(tick), y=floor + 17, text_anchor="middle")
    for tick in y.ticks():
        yield tag("line", x1=LEFT, x2=chart.width - RIGHT, y1=y.at(tick), y2=y.at(tick), class_="grid")
        yield tag("text", f"{tick:.3g}{unit}", x=LEFT - 6, y=y.at(tick) + 4, text_anchor="end")
    middle = (LEFT + chart.width - RIGHT) / 2
    yield tag("line", x1=LEFT, x2=chart.width - RIGHT, y1=floor, y2=floor, class_="axis")
    yield tag("text", "multiply-adds in low precision", x=middle, y=floor + 34, text_anchor="middle", class_="of")


def _budget(limit: float | None, y: Axis, chart: Chart) -> Iterator[Html]:
    if limit is not None:
        at = y.at(limit)
        yield tag("line", x1=LEFT, x2=chart.width - RIGHT, y1=at, y2=at, class_="budget")
        yield tag("text", "budget", x=chart.width - RIGHT, y=at - 5, text_anchor="end", class_="name best")
