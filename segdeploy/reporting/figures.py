"""Numbers as people read them: three digits of a time, and a share that never rounds to all or nothing."""

import math

from segdeploy.timing.result_types import Interval

DIGITS = 3
MOST_DECIMALS = 8
NONE = "\N{EN DASH}"


def ms(value: float | None) -> str:
    """Three significant digits: 0.0123, 1.23, 12.3, 123, 1,234."""
    if value is None:
        return NONE
    if value <= 0:
        return f"{value:g}"
    decimals = max(0, DIGITS - 1 - math.floor(math.log10(value)))
    return f"{value:,.{decimals}f}"


def percent(share: float | None) -> str:
    """Two digits of what lacks to all or to nothing: 99.9964%, never 100% where a pixel differs."""
    if share is None:
        return NONE
    rest = 100 * min(share, 1 - share)
    if rest <= 0:
        return "100%" if share >= 1 else "0%"
    decimals = min(MOST_DECIMALS, max(1, 1 - math.floor(math.log10(rest))))
    unit = 10.0**-decimals
    shown = min(max(round(100 * share, decimals), unit), 100 - unit)
    return f"{shown:.{decimals}f}%"


def score(value: float | None) -> str:
    """Of mIoU and IoU, which stand for themselves: 0.8967."""
    return NONE if value is None else f"{value:.4f}"


def points(value: float | None) -> str:
    return NONE if value is None else f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def times(ratio: float) -> str:
    """1.07, 2.6, 13: as much as a reader keeps."""
    return f"{ratio:.2f}" if ratio < 2 else f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"  # noqa: PLR2004


def interval(found: Interval | None) -> str:
    """A star where it assumes independent calls."""
    return NONE if found is None else f"{ms(found.low)} to {ms(found.high)}{'*' if found.assumes_independent else ''}"
