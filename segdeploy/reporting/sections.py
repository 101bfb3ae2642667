"""What stands in each part of the report: result files joined into networks, charts, tables and pictures."""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from segdeploy.reporting import figures as numbers
from segdeploy.reporting import svg
from segdeploy.reporting._document import Document
from segdeploy.reporting.verdict import (
    LEVELS,
    STANDINGS,
    Group,
    Subject,
    Timed,
    Verdict,
    View,
    across,
    comparable_by_miou,
    disturbances,
    judge,
    ranked,
    views,
)

PROFILED = 20  # layers with a bar of their own
NOTABLE_POINTS = 0.05  # of IoU: less is not worth a reader's eye
RUNTIMES = {
    "torch": "PyTorch",
    "ort": "ONNX Runtime",
    "ov": "OpenVINO",
    "trt": "TensorRT",
    "trt-rtx": "TensorRT-RTX",
}
Facts = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """One scatter with the sentence under it."""

    title: str
    chart: svg.Html
    caption: str


@dataclasses.dataclass(frozen=True, slots=True)
class Shown:
    """The charts of one level and batch."""

    view: View
    overall: Figure | None
    figures: Sequence[Figure]

    @property
    def key(self) -> str:
        """Safe as the value of an attribute, whatever a level is called."""
        return re.sub(r"\W", "-", f"{self.view.level}-{self.view.batch}")


@dataclasses.dataclass(frozen=True, slots=True)
class ClassTable:
    """IoU by class: a column for each engine, a row for each class; `of` says against what."""

    group: Group
    of: str
    subjects: Sequence[Subject]
    rows: Sequence[tuple[str, svg.Html | None, Sequence[tuple[float | None, float | None]]]]


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """`worst`: the engine that draws most pixels otherwise than PyTorch, and the share that agrees."""

    document: int
    index: int
    name: str
    group: str
    worst: Subject | None
    agreement: float | None


def groups(documents: Sequence[Document]) -> list[Group]:
    """One for each network of each file, in the order of the files; subjects are numbered over all of them.

    A network that stands in several files is named with its file.
    """
    files = collections.Counter(
        model for document in documents for model in {each["model"] for each in document.facts["subjects"]}
    )
    found: list[Group] = []
    number = 0
    for document in documents:
        facts = document.facts["subjects"]
        for model in dict.fromkeys(each["model"] for each in facts):
            members = [each for each in facts if each["model"] == model]
            title = model if files[model] == 1 else f"{model} · {document.name}"
            subjects = list(_subjects(members, document, number))
            found.append(Group(len(found), document, model, title, subjects))
            number += len(members)
    return found


def _subjects(members: Sequence[Facts], document: Document, first: int) -> Iterator[Subject]:
    rows = collections.defaultdict(list)
    for row in document.facts["rows"]:
        rows[row["subject"]].append(row)
    for number, (facts, label) in enumerate(zip(members, _labels(members), strict=True), first):
        yield Subject(number, label, facts, rows[facts["id"]])


def _labels(members: Sequence[Facts]) -> list[str]:
    """The engine's name; with its precision for another tool, with its device where there are several."""
    devices = {each["device"] for each in members}
    names = [_name(each) + (f" {each['device']}" if len(devices) > 1 else "") for each in members]
    return [each["id"] if names.count(name) > 1 else name for each, name in zip(members, names, strict=True)]


def _name(facts: Facts) -> str:
    precision = facts["precision"]
    return f"{facts['engine']} {precision}" if precision and precision not in facts["engine"] else facts["engine"]


# Charts


def shown(found: Sequence[Group], documents: Sequence[Document]) -> list[Shown]:
    subjects = [subject for group in found for subject in group.subjects]
    together = len(found) > 1 and comparable_by_miou(subjects, documents)
    return [
        Shown(view, _overall(found, view) if together else None, list(_figures(found, view)))
        for view in views(subjects)
    ]


def _overall(found: Sequence[Group], view: View) -> Figure:
    timed = [(group, each) for group in found for each in ranked(group.subjects, view)]
    points = [_point(each, group, "miou") for group, each in timed]
    named = [
        dataclasses.replace(point, label=f"{group.title} {point.label}")
        for (group, _), point in zip(timed, points, strict=True)
    ]
    chart = svg.Chart("All networks", "mIoU", percent=False, width=860, height=440)
    return Figure("All networks", svg.scatter(named, chart), "The line joins what no other engine beats in both.")


def _figures(found: Sequence[Group], view: View) -> Iterator[Figure]:
    for group in found:
        timed = ranked(group.subjects, view)
        if not timed:
            continue
        key = "miou" if all(each.subject.facts["miou"] is not None for each in timed) else "agreement"
        name = {"miou": "mIoU", "agreement": "agreement with PyTorch"}[key]
        chart = svg.Chart(group.title, name, percent=key == "agreement")
        points = [_point(each, group, key) for each in timed]
        yield Figure(group.title, svg.scatter(points, chart), _span(points, key))


def _span(points: Sequence[svg.Point], key: str) -> str:
    heights = [point.y for point in points if point.y is not None]
    if not heights:
        return "No accuracy was measured."
    lost = 100 * (max(heights) - min(heights))
    unit = "points of mIoU" if key == "miou" else "percent of the pixels"
    return f"From best to worst: {lost:.2g} {unit}." if lost else "All are equally accurate."


def _point(timed: Timed, group: Group, key: str) -> svg.Point:
    facts = timed.subject.facts
    known = facts[key]
    accuracy = f"{numbers.score(facts['miou'])} mIoU, {numbers.percent(facts['agreement'])} agreement"
    told = f"{group.title} {timed.subject.label}: {numbers.ms(timed.median)} ms, {accuracy}"
    shape = facts["precision"] or "other"
    failed = timed.subject.standing == "failed"
    name = f"{timed.subject.label} \N{BALLOT X}" if failed else timed.subject.label
    return svg.Point(timed.median, known, name, told, group.number, shape, facts["peer"], failed)


# Tables


def table(found: Sequence[Group]) -> Iterator[tuple[Group, Timed]]:
    """All rows: by network, then what matters most, then the fastest first."""
    for group in found:
        for view in views(group.subjects):
            for timed in ranked(group.subjects, view):
                yield group, timed


def runs_in(subject: Subject) -> str:
    """OpenVINO, int8, cpu."""
    facts = subject.facts
    parts = (RUNTIMES.get(facts["runtime"], facts["runtime"]), facts["precision"], facts["device"])
    return ", ".join(part for part in parts if part)


def slowest(verdict: Verdict) -> float:
    """The full width of the bars of a ranking."""
    return max(each.bounds[1] for each in verdict.timed)


def ranking_bar(timed: Timed, verdict: Verdict) -> svg.Html:
    full = slowest(verdict)
    low, high = timed.bounds
    kind = "pick" if timed is verdict.pick else timed.subject.standing
    return svg.bar(timed.median / full, kind=kind, interval=(low / full, high / full))


def class_tables(found: Sequence[Group]) -> Iterator[ClassTable]:
    """IoU against truth where it was measured, else against PyTorch's own masks."""
    for group in found:
        for key, of in (("iou_by_class", "IoU against the truth"), ("agrees", "IoU with PyTorch's masks")):
            scored = [(subject, scores) for subject in group.subjects if (scores := _by_class(subject, key))]
            if scored:
                yield ClassTable(group, of, [subject for subject, _ in scored], _class_rows(scored, key))
                break


def _by_class(subject: Subject, key: str) -> Facts | None:
    if key == "iou_by_class":
        scores: Facts | None = subject.facts[key]
        return scores
    return subject.stage["class_agreement"] if subject.stage else None


def _class_rows(scored: Sequence[tuple[Subject, Facts]], key: str) -> list[Any]:
    """Each class with every engine's score and, against truth, what it lost to PyTorch where that is notable."""
    reference = next((scores for subject, scores in scored if subject.standing == "reference"), {})
    names = dict.fromkeys(name for _, scores in scored for name in scores)
    lost = functools.partial(_lost, reference=reference if key == "iou_by_class" else {})
    return [
        (name, _swatch(name, scored[0][0]), [(scores.get(name), lost(name, scores)) for _, scores in scored])
        for name in names
    ]


def _lost(name: str, scores: Facts, *, reference: Facts) -> float | None:
    before, after = reference.get(name), scores.get(name)
    if before is None or after is None or abs(after - before) * 100 < NOTABLE_POINTS:
        return None
    return float(100 * (after - before))


def _swatch(name: str, subject: Subject) -> svg.Html | None:
    colours = dict(zip(subject.facts["classes"], subject.facts["colours"], strict=False))
    return svg.swatch(colours[name]) if name in colours else None


def profile(subject: Subject) -> list[tuple[str, str, float, float]]:
    """(layer, operator, ms, share of all) of the slowest layers, and all others in one."""
    layers = sorted(subject.facts["profile"], key=lambda each: -each["ms"])
    total = sum(each["ms"] for each in layers) or 1.0
    listed = [(each["layer"], each["op"] or "", each["ms"], each["ms"] / total) for each in layers[:PROFILED]]
    rest = sum(each["ms"] for each in layers[PROFILED:])
    if rest:
        listed.append((f"the other {len(layers) - PROFILED}", "", rest, rest / total))
    return listed


def search_chart(subject: Subject) -> svg.Html | None:
    """What each step of the search lost, against how much of the work it left narrow."""
    search = subject.facts["search"]
    found, budget = search["steps"], search["budget"]
    if len(found) < 2:  # noqa: PLR2004 - one step draws no line
        return None
    if all(step["miou_drop"] is not None for step in found):
        losses = [(step["narrow_share"], step["miou_drop"]) for step in found]
        return svg.steps(losses, limit=budget["max_drop"], loss="points of mIoU lost", unit="")
    losses = [(step["narrow_share"], 100 * (1 - step["agreement"])) for step in found if step["agreement"] is not None]
    limit = None if budget["min_agreement"] is None else 100 * (1 - budget["min_agreement"])
    return svg.steps(losses, limit=limit, loss="pixels that differ", unit="%") if losses else None


# Pictures


def pictures(documents: Sequence[Document], found: Sequence[Group], kept: Sequence[int]) -> Iterator[Picture]:
    """The first `kept` of each file, in its order: the worst first."""
    for number, (document, most) in enumerate(zip(documents, kept, strict=True)):
        members = {
            subject.facts["id"]: (group, subject)
            for group in found
            if group.document is document
            for subject in group.subjects
        }
        for index, picture in enumerate(document.facts["pictures"][:most]):
            scores = {key: value for key, value in picture["agreement"].items() if value is not None and key in members}
            worst = min(scores, key=lambda key: scores[key]) if scores else None
            group, subject = members[worst] if worst is not None else (None, None)
            title = group.title if group else document.name
            agreement = None if worst is None else scores[worst]
            yield Picture(number, index, picture["name"], title, subject, agreement)


# Plain facts


def plain(value: object) -> str:
    """Any JSON value in one line."""
    if value is None or value == "":
        return numbers.NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {plain(inner)}" for key, inner in value.items()) or numbers.NONE
    if isinstance(value, list | tuple):
        return ", ".join(plain(inner) for inner in value) or numbers.NONE
    return f"{value:g}" if isinstance(value, float) else str(value)


def spaced(name: str) -> str:
    return name.replace("_", " ")


def context(documents: Sequence[Document], kept: Sequence[int]) -> dict[str, Any]:
    """Everything the page shows, by the names its template uses."""
    found = groups(documents)
    subjects = [(group, subject) for group in found for subject in group.subjects]
    verdicts = [verdict for group in found if (verdict := judge(group))]
    return {
        "documents": documents,
        "groups": found,
        "subjects": subjects,
        "table": list(table(found)),
        "verdicts": verdicts,
        "across": across(verdicts) if comparable_by_miou([each for _, each in subjects], documents) else None,
        "shown": shown(found, documents),
        "precisions": sorted({subject.facts["precision"] or "other" for _, subject in subjects}),
        "with_peers": any(subject.facts["peer"] for _, subject in subjects),
        "class_tables": list(class_tables(found)),
        "pictures": list(pictures(documents, found, kept)),
        "left_out": sum(len(document.facts["pictures"]) for document in documents) - sum(kept),
        "disturbed": [(document.name, flags) for document in documents if (flags := disturbances(document))],
        "levels": LEVELS,
        "runtimes": RUNTIMES,
        "standings": STANDINGS,
    }


FILTERS: Mapping[str, Callable[..., Any]] = {
    "ms": numbers.ms,
    "percent": numbers.percent,
    "score": numbers.score,
    "points": numbers.points,
    "interval": numbers.interval,
    "plain": plain,
    "spaced": spaced,
}
HELPERS: Mapping[str, Callable[..., Any]] = {
    "bar": svg.bar,
    "sample": svg.sample,
    "profile": profile,
    "search_chart": search_chart,
    "ranking_bar": ranking_bar,
    "runs_in": runs_in,
}
