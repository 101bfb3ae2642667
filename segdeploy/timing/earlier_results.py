"""Results of schema 2, which segdeploy 0.1 wrote, put into the form of today's."""

from collections.abc import Callable
from typing import Any

from segdeploy import earlier_files
from segdeploy.timing.result_types import SCHEMA

EARLIER_SCHEMA = 2
Change = Callable[[Any], object]


def result(document: object) -> object:
    """A result of schema 2 in today's form; what it does not say is absent.

    Its intervals are left out: those of 0.1 held the median less often than they said.
    """
    return _said(
        document,
        schema=lambda _: SCHEMA,
        machine=_said,
        conditions=_said,
        skipped=_each(_said),
        subjects=_each(_subject),
        rows=_each(_row),
        ratios=_each(lambda ratio: _without(_said(ratio), "interval")),
        comparison=_comparison,
        pictures=_each(_said),
        failures=_each(_said),
    )


def _said(record: object, **changes: Change) -> object:
    """An object without its nulls, for schema 2 took null and absent as the same; `changes` are made to its fields."""
    if not isinstance(record, dict):
        return record
    said = {name: value for name, value in record.items() if value is not None}
    return said | {name: change(said[name]) for name, change in changes.items() if name in said}


def _each(change: Change) -> Change:
    return lambda found: [change(item) for item in found] if isinstance(found, list) else found


def _subject(subject: object) -> object:
    found = _said(subject, memory=_said, search=_search, profile=_each(_said))
    if isinstance(found, dict) and "certificate" in found:
        file = {"spec": found, "precision": found.get("precision"), "form": found.get("form")}
        return found | {"certificate": earlier_files.proof(found["certificate"], file)}
    return found


def _search(search: object) -> object:
    return _said(search, steps=_each(_step))


def _step(step: object) -> object:
    if not isinstance(step, dict):
        return step
    unknown: dict[str, object] = {"in_float": [], "miou_drop": None, "ms": None, "accepted": False, "front": False}
    return unknown | step | {"low_share": step.get("narrow_share")}


def _row(row: object) -> object:
    return _without(_said(row, memory=_said, latency_ms=_said), "median_interval")


def _comparison(comparison: object) -> object:
    return _said(comparison, rows=_each(lambda row: _without(_said(row), "interval")))


def _without(record: object, left_out: str) -> object:
    return {name: value for name, value in record.items() if name != left_out} if isinstance(record, dict) else record
