"""What stands in each part of the report: result files joined into networks, charts, tables and pictures."""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from segdeploy.reporting import figures as numbers
from segdeploy.reporting import svg
from segdeploy.reporting.verdict import (
    LEVELS,
    STANDINGS,
    Contender,
    Group,
    NamedResult,
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
from segdeploy.timing.result_types import LayerTime, Subject

PROFILED = 20  # layers with a bar of their own
NOTABLE_POINTS = 0.05  # of IoU: less is not worth a reader's eye
RUNTIMES = {
    "torch": "PyTorch",
    "ort": "ONNX Runtime",
    "ov": "OpenVINO",
    "trt": "TensorRT",
    "trt-rtx": "TensorRT-RTX",
}
Scores = Mapping[str, float | None]
ClassRow = tuple[str, svg.Html | None, Sequence[tuple[float | None, float | None]]]


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
    subjects: Sequence[Contender]
    rows: Sequence[ClassRow]


@dataclasses.dataclass(frozen=True, slots=True)
class ListedPicture:
    """A picture of the page, by the place of its document and its own place there.

    `worst`: the engine that draws most pixels otherwise than PyTorch; `agreement`: the share that it draws alike.
    """

    document: int
    index: int
    name: str
    group: str
    worst: Contender | None
    agreement: float | None


def groups(documents: Sequence[NamedResult]) -> list[Group]:
    """One for each network of each file, in the order of the files; subjects are numbered over all of them.

    A network that stands in several files is named with its file.
    """
    files = collections.Counter(
        model for document in documents for model in {each.model for each in document.result.subjects}
    )
    found: list[Group] = []
    number = 0
    for document in documents:
        facts = document.result.subjects
        for model in dict.fromkeys(each.model for each in facts):
            members = [each for each in facts if each.model == model]
            title = model if files[model] == 1 else f"{model} · {document.name}"
            subjects = list(_subjects(members, document, number))
            found.append(Group(len(found), document, model, title, subjects))
            number += len(members)
    return found


def _subjects(members: Sequence[Subject], document: NamedResult, first: int) -> Iterator[Contender]:
    rows = collections.defaultdict(list)
    for row in document.result.rows:
        rows[row.subject].append(row)
    for number, (facts, label) in enumerate(zip(members, _labels(members), strict=True), first):
        yield Contender(number, label, facts, rows[facts.id])


def _labels(members: Sequence[Subject]) -> list[str]:
    """The engine's name; with its precision for another tool, with its device where there are several."""
    devices = {each.device for each in members}
    names = [_name(each) + (f" {each.device}" if len(devices) > 1 else "") for each in members]
    return [each.id if names.count(name) > 1 else name for each, name in zip(members, names, strict=True)]


def _name(facts: Subject) -> str:
    precision = facts.precision
    return f"{facts.engine} {precision}" if precision and precision not in facts.engine else facts.engine


# Charts


def shown(found: Sequence[Group], documents: Sequence[NamedResult]) -> list[Shown]:
    subjects = [subject for group in found for subject in group.subjects]
    together = len(found) > 1 and comparable_by_miou(subjects, documents)
    return [
        Shown(view, _overall(found, view) if together else None, list(_figures(found, view)))
        for view in views(subjects)
    ]


def _overall(found: Sequence[Group], view: View) -> Figure:
    timed = [(group, each) for group in found for each in ranked(group.subjects, view)]
    points = [_point(each, group, each.subject.facts.miou) for group, each in timed]
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
        scored = all(each.subject.facts.miou is not None for each in timed)
        facts = [each.subject.facts for each in timed]
        heights = [each.miou if scored else each.agreement for each in facts]
        points = [_point(each, group, height) for each, height in zip(timed, heights, strict=True)]
        name, unit = ("mIoU", "points of mIoU") if scored else ("agreement with PyTorch", "percent of the pixels")
        chart = svg.Chart(group.title, name, percent=not scored)
        yield Figure(group.title, svg.scatter(points, chart), _span(heights, unit))


def _span(heights: Sequence[float | None], unit: str) -> str:
    measured = [height for height in heights if height is not None]
    if not measured:
        return "No accuracy was measured."
    lost = 100 * (max(measured) - min(measured))
    return f"From best to worst: {lost:.2g} {unit}." if lost else "All are equally accurate."


def _point(timed: Timed, group: Group, height: float | None) -> svg.Point:
    facts = timed.subject.facts
    accuracy = f"{numbers.score(facts.miou)} mIoU, {numbers.percent(facts.agreement)} agreement"
    told = f"{group.title} {timed.subject.label}: {numbers.ms(timed.median)} ms, {accuracy}"
    shape = facts.precision or "other"
    failed = timed.subject.standing == "failed"
    name = f"{timed.subject.label} \N{BALLOT X}" if failed else timed.subject.label
    return svg.Point(timed.median, height, name, told, group.number, shape, facts.peer, failed)


# Tables


def table(found: Sequence[Group]) -> Iterator[tuple[Group, Timed]]:
    """All rows: by network, then what matters most, then the fastest first."""
    for group in found:
        for view in views(group.subjects):
            for timed in ranked(group.subjects, view):
                yield group, timed


def runs_in(subject: Contender) -> str:
    """OpenVINO, int8, cpu."""
    facts = subject.facts
    parts = (RUNTIMES.get(facts.runtime or "", facts.runtime), facts.precision, facts.device)
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
        for of, scores_of in (
            ("IoU against the truth", _against_truth),
            ("IoU with PyTorch's masks", _against_pytorch),
        ):
            scored = [(subject, scores) for subject in group.subjects if (scores := scores_of(subject))]
            if scored:
                reference = _reference(scored) if scores_of is _against_truth else {}
                yield ClassTable(group, of, [subject for subject, _ in scored], _class_rows(scored, reference))
                break


def _against_truth(subject: Contender) -> Scores | None:
    return subject.facts.iou_by_class


def _against_pytorch(subject: Contender) -> Scores | None:
    return subject.stage.class_agreement if subject.stage else None


def _reference(scored: Sequence[tuple[Contender, Scores]]) -> Scores:
    return next((scores for subject, scores in scored if subject.standing == "reference"), {})


def _class_rows(scored: Sequence[tuple[Contender, Scores]], reference: Scores) -> list[ClassRow]:
    """Each class with every engine's score and what it lost to the reference, where that is notable."""
    names = dict.fromkeys(name for _, scores in scored for name in scores)
    lost = functools.partial(_lost, reference=reference)
    return [
        (name, _swatch(name, scored[0][0]), [(scores.get(name), lost(name, scores)) for _, scores in scored])
        for name in names
    ]


def _lost(name: str, scores: Scores, *, reference: Scores) -> float | None:
    before, after = reference.get(name), scores.get(name)
    if before is None or after is None or abs(after - before) * 100 < NOTABLE_POINTS:
        return None
    return 100 * (after - before)


def _swatch(name: str, subject: Contender) -> svg.Html | None:
    colours = dict(zip(subject.facts.classes, subject.facts.colours, strict=False))
    return svg.swatch(colours[name]) if name in colours else None


def profile(subject: Contender) -> list[LayerTime]:
    """The slowest layers with their share of all, and all others in one."""
    layers = sorted(subject.facts.profile or (), key=lambda each: -each.ms)
    total = sum(each.ms for each in layers) or 1.0
    listed = [dataclasses.replace(each, share=each.ms / total) for each in layers[:PROFILED]]
    rest = sum(each.ms for each in layers[PROFILED:])
    if rest:
        listed.append(LayerTime(layer=f"the other {len(layers) - PROFILED}", op="", ms=rest, share=rest / total))
    return listed


def search_chart(subject: Contender) -> svg.Html | None:
    """What each step of the search lost, against how much of the work it left in low precision."""
    search = subject.facts.search
    if search is None or len(search.steps) < 2:  # noqa: PLR2004 - one step draws no line
        return None
    budget = search.budget
    drops = [(step.low_share, step.miou_drop) for step in search.steps if step.miou_drop is not None]
    if len(drops) == len(search.steps):
        return svg.steps(drops, limit=budget.max_drop if budget else None, loss="points of mIoU lost", unit="")
    losses = [(step.low_share, 100 * (1 - step.agreement)) for step in search.steps]
    limit = 100 * (1 - budget.min_agreement) if budget else None
    return svg.steps(losses, limit=limit, loss="pixels that differ", unit="%")


# Pictures


def pictures(documents: Sequence[NamedResult], found: Sequence[Group], kept: Sequence[int]) -> Iterator[ListedPicture]:
    """The first `kept` of each file, in its order: the worst first."""
    for number, (document, most) in enumerate(zip(documents, kept, strict=True)):
        members = {
            subject.facts.id: (group, subject)
            for group in found
            if group.document is document
            for subject in group.subjects
        }
        for index, picture in enumerate(document.result.pictures[:most]):
            scores = {key: value for key, value in picture.agreement.items() if value is not None and key in members}
            worst = min(scores, key=lambda key: scores[key]) if scores else None
            group, subject = members[worst] if worst is not None else (None, None)
            title = group.title if group else document.name
            agreement = None if worst is None else scores[worst]
            yield ListedPicture(number, index, picture.name, title, subject, agreement)


# Plain facts


def plain(value: object) -> str:
    """A value in one line; of the fields of a dataclass those that are known."""
    if value is None or value == "":
        return numbers.NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if dataclasses.is_dataclass(value):
        return plain({name: inner for name, inner in fields(value) if inner is not None})
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {plain(inner)}" for key, inner in value.items()) or numbers.NONE
    if isinstance(value, list | tuple):
        return ", ".join(plain(inner) for inner in value) or numbers.NONE
    return f"{value:g}" if isinstance(value, float) else str(value)


def fields(value: Any) -> list[tuple[str, object]]:  # noqa: ANN401 - any dataclass
    """The fields of a dataclass with their values, in their order; None has none."""
    return [] if value is None else [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]


def spaced(name: str) -> str:
    return name.replace("_", " ")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Everything the page shows, by the names its template uses."""

    documents: Sequence[NamedResult]
    groups: Sequence[Group]
    subjects: Sequence[tuple[Group, Contender]]
    table: Sequence[tuple[Group, Timed]]
    verdicts: Sequence[Verdict]
    across: str | None
    shown: Sequence[Shown]
    precisions: Sequence[str]
    with_peers: bool
    class_tables: Sequence[ClassTable]
    pictures: Sequence[ListedPicture]
    left_out: int
    disturbed: Sequence[tuple[str, Sequence[str]]]
    levels: Mapping[str, str] = dataclasses.field(default_factory=lambda: LEVELS)
    runtimes: Mapping[str, str] = dataclasses.field(default_factory=lambda: RUNTIMES)
    standings: Mapping[str, str] = dataclasses.field(default_factory=lambda: STANDINGS)


def contents(documents: Sequence[NamedResult], kept: Sequence[int]) -> Contents:
    """What the page shows of these results, with the first `kept` pictures of each."""
    found = groups(documents)
    subjects = [(group, subject) for group in found for subject in group.subjects]
    verdicts = [verdict for group in found if (verdict := judge(group))]
    return Contents(
        documents=documents,
        groups=found,
        subjects=subjects,
        table=list(table(found)),
        verdicts=verdicts,
        across=across(verdicts) if comparable_by_miou([each for _, each in subjects], documents) else None,
        shown=shown(found, documents),
        precisions=sorted({subject.facts.precision or "other" for _, subject in subjects}),
        with_peers=any(subject.facts.peer for _, subject in subjects),
        class_tables=list(class_tables(found)),
        pictures=list(pictures(documents, found, kept)),
        left_out=sum(len(document.result.pictures) for document in documents) - sum(kept),
        disturbed=[(document.name, flags) for document in documents if (flags := disturbances(document))],
    )


FILTERS: Mapping[str, Callable[..., Any]] = {
    "ms": numbers.ms,
    "percent": numbers.percent,
    "score": numbers.score,
    "points": numbers.points,
    "interval": numbers.interval,
    "plain": plain,
    "fields": fields,
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
