"""Result files of `segdeploy bench --save`, read as what strangers wrote: every field is checked before it is used."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from segdeploy import artifact
from segdeploy.errors import InvalidFileError, InvalidRequestError

SCHEMA = 2
MOST_BYTES = 2**28
SMALLEST, LARGEST = 1e-9, 1e15  # of a number that something measured
AGAIN = "Write it again: segdeploy bench --save FILE"
Check = Callable[[Any, str], Any]
"""Takes a JSON value and where it stands; gives the value, with null for what is absent, or raises ValueError."""


def _wrong(value: object, where: str, wanted: str) -> ValueError:
    shown = json.dumps(value)
    return ValueError(f"{where} is {shown if len(shown) <= 60 else shown[:57] + '...'}, not {wanted}")  # noqa: PLR2004 - on one line


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(value, where, "text")
    return value


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(value, where, "true or false")
    return value


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise _wrong(value, where, "a number")
    return value


def _positive(value: object, where: str) -> float:
    if _number(value, where) < SMALLEST:
        raise _wrong(value, where, "above zero")
    return _number(value, where)


def _share(value: object, where: str) -> float:
    if not 0 <= _number(value, where) <= 1:
        raise _wrong(value, where, "a share from 0 to 1")
    return _number(value, where)


def _count(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _wrong(value, where, "a count")
    return value


def _pixels(value: object, where: str) -> str:
    """Base64 of a JPEG or a PNG: what the page may put behind `data:image`."""
    text = _text(value, where)
    if not re.fullmatch(r"(?:/9j/|iVBORw0KGgo)[A-Za-z0-9+/]*={0,2}", text):
        raise _wrong(value, where, "a JPEG or PNG in base64")
    return text


def _maybe(check: Check) -> Check:
    return lambda value, where: None if value is None else check(value, where)


def _list(check: Check, length: int | None = None) -> Check:
    def each(value: object, where: str) -> list[Any]:
        if not isinstance(value, list) or length not in {None, len(value)}:
            raise _wrong(value, where, "a list" if length is None else f"a list of {length}")
        return [check(item, f"{where}[{index}]") for index, item in enumerate(value)]

    return each


def _named(check: Check) -> Check:
    def each(value: object, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(value, where, "an object")
        return {key: check(item, f"{where}.{key}") for key, item in value.items()}

    return each


def _record(**fields: Check) -> Check:
    """An object with these fields; others are ignored."""

    def each(value: object, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(value, where, "an object")
        return {key: check(value.get(key), f"{where}.{key}".lstrip(".")) for key, check in fields.items()}

    return each


def _or(check: Check, default: object) -> Check:
    return lambda value, where: default if value is None else check(value, where)


def _some(check: Check) -> Check:
    return _or(_list(check), ())


def _anything(value: object, _where: str) -> object:
    return value


_INTERVAL = _maybe(_list(_number, 2))
_SCORES = _maybe(_named(_maybe(_share)))
_WORST = _record(image=_text, agreement=_maybe(_share), differing_pixels=_maybe(_count), boundary_share=_maybe(_share))
_STAGE = _record(
    name=_text,
    runtime=_maybe(_text),
    device=_maybe(_text),
    passed=_maybe(_flag),
    reason=_maybe(_text),
    **dict.fromkeys(
        (
            "agreement",
            "decided_agreement",
            "near_ties",
            "pool_ties",
            "unexplained",
            "boundary_agreement",
            "interior_agreement",
            "boundary_f1",
        ),
        _maybe(_share),
    ),
    pixels=_maybe(_count),
    differing_pixels=_maybe(_count),
    miou_change=_maybe(_number),
    miou_change_by_class=_maybe(_named(_maybe(_number))),
    class_agreement=_SCORES,
    worst_images=_some(_WORST),
)
_CERTIFICATE = _record(
    passed=_maybe(_flag),
    gated=_or(_flag, default=True),
    first_failing_stage=_maybe(_text),
    proven_to=_maybe(_text),
    images=_maybe(_count),
    limits=_or(_named(_anything), {}),
    departure=_maybe(_named(_anything)),
    stages=_some(_STAGE),
)
_STEP = _record(
    in_float=_some(_text),
    narrow_share=_share,
    agreement=_maybe(_share),
    miou_drop=_maybe(_number),
    ms=_maybe(_positive),
)
_BUDGET = _record(min_agreement=_maybe(_share), max_drop=_maybe(_number))
_SEARCH = _record(
    budget=_or(_BUDGET, {"min_agreement": None, "max_drop": None}),
    record=_maybe(_text),
    steps=_some(_STEP),
)
_SUBJECT = _record(
    id=_text,
    model=_text,
    engine=_text,
    runtime=_maybe(_text),
    precision=_maybe(_text),
    form=_maybe(_text),
    device=_maybe(_text),
    peer=_or(_flag, default=False),
    delivered=_maybe(_text),
    delivered_share=_maybe(_share),
    wider=_some(_text),
    asked=_maybe(_named(_share)),
    in_float=_or(_named(_maybe(_text)), {}),
    path=_maybe(_text),
    sha256=_maybe(_text),
    size_mb=_maybe(_number),
    height=_maybe(_count),
    width=_maybe(_count),
    threads=_maybe(_count),
    classes=_some(_text),
    colours=_some(_list(_count, 3)),
    random_weights=_or(_flag, default=False),
    miou=_maybe(_share),
    miou_reason=_maybe(_text),
    iou_by_class=_SCORES,
    agreement=_maybe(_share),
    agreement_reason=_maybe(_text),
    certificate=_maybe(_CERTIFICATE),
    memory=_or(
        _record(host_peak_mb=_maybe(_number), device_peak_mb=_maybe(_number), reason=_maybe(_text)),
        {"host_peak_mb": None, "device_peak_mb": None, "reason": None},
    ),
    search=_maybe(_SEARCH),
    profile=_some(_record(layer=_text, op=_maybe(_text), ms=_number, share=_maybe(_number))),
)
_LATENCY = _record(
    min=_maybe(_positive),
    mean=_maybe(_positive),
    median=_positive,
    p90=_maybe(_positive),
    p95=_maybe(_positive),
    p99=_maybe(_positive),
)
_ROW = _record(
    subject=_text,
    level=_text,
    batch=_count,
    runs=_maybe(_count),
    noisy=_or(_flag, default=False),
    images_per_s=_maybe(_number),
    latency_ms=_LATENCY,
    median_interval=_maybe(_list(_positive, 2)),
)
_PICTURE = _record(
    name=_text,
    height=_count,
    width=_count,
    photo=_pixels,
    truth=_maybe(_pixels),
    masks=_or(_named(_pixels), {}),
    agreement=_or(_named(_maybe(_share)), {}),
)
_COMPARED = _record(
    subject=_text,
    level=_maybe(_text),
    batch=_maybe(_count),
    ratio=_maybe(_positive),
    interval=_INTERVAL,
    regression=_or(_flag, default=False),
    comparable=_or(_flag, default=True),
    reason=_maybe(_text),
)
_DOCUMENT = _record(
    made_at=_maybe(_text),
    command=_maybe(_text),
    version=_maybe(_text),
    commit=_maybe(_text),
    machine=_or(_named(_anything), {}),
    conditions=_or(_named(_anything), {}),
    data=_maybe(_text),
    images=_maybe(_count),
    subjects=_list(_SUBJECT),
    rows=_list(_ROW),
    ratios=_some(_record(engine=_text, batch=_count, ratio=_positive, interval=_INTERVAL)),
    comparison=_maybe(_record(**{"with": _maybe(_text), "rows": _some(_COMPARED), "max_regression": _maybe(_number)})),
    skipped=_some(_record(engine=_text, reason=_maybe(_text))),
    failures=_some(_record(what=_text, remedy=_maybe(_text))),
    pictures=_some(_PICTURE),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """`facts`: every field of the schema, null or empty where the file lacks it; `raw`: the file as it was."""

    name: str
    facts: Mapping[str, Any]
    raw: Mapping[str, Any]


def read_all(paths: Iterable[Path]) -> list[Document]:
    return [_read(path) for path in paths]


def _read(path: Path) -> Document:
    try:
        raw = json.loads(artifact.bounded(path, MOST_BYTES), parse_constant=_refuse_constant)
        _require_kind(raw, path)
        facts = _DOCUMENT(raw, "")
        _require_whole(facts)
    except FileNotFoundError as error:
        raise InvalidRequestError(f"there is no file {path}.", "Name one that segdeploy bench --save wrote.") from error
    except (ValueError, RecursionError, OverflowError) as error:
        raise InvalidFileError(f"{path} is no result of segdeploy bench: {error}.", AGAIN) from error
    return Document(path.name, facts, raw)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _require_kind(raw: object, path: Path) -> None:
    if not isinstance(raw, dict) or raw.get("kind") != "bench":
        kind = raw.get("kind", "unnamed") if isinstance(raw, dict) else "unnamed"
        raise InvalidFileError(f"{path} is no result of segdeploy bench (its kind: {kind}).", AGAIN)
    if raw.get("schema") != SCHEMA:
        raise InvalidFileError(f"{path} is of schema {raw.get('schema')}; this version reads {SCHEMA}.", AGAIN)
    if not raw.get("rows"):
        raise InvalidFileError(f"{path} has no rows: nothing was timed.", AGAIN)


def _require_whole(facts: Mapping[str, Any]) -> None:
    """Every row has its subject, and every subject its own name."""
    names = [subject["id"] for subject in facts["subjects"]]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the subject {name!r} occurs twice")
    for row in facts["rows"]:
        if row["subject"] not in names:
            raise ValueError(f"a row is of {row['subject']!r}, which is no subject")
