"""Which engine to ship: for each network of a result file the fastest whose masks are proven, and what to know."""

import dataclasses
from collections.abc import Iterator, Sequence

from segdeploy.certificate import Certificate, Stage
from segdeploy.reporting import figures as numbers
from segdeploy.timing.result_types import Result, Row, Subject

LEVELS = {"image_to_mask": "image to mask", "host": "host", "device": "device"}
OF_LEVEL = {
    "image_to_mask": "from image file to encoded mask",
    "host": "from images in memory to class maps",
    "device": "of computing alone, without copies",
}
STANDINGS = {
    "proven": "proven",
    "reference": "reference",
    "failed": "failed",
    "random": "random weights",
    "measured": "not certified",
    "unmeasured": "not measured",
}
TRUSTED = ("proven", "reference")


@dataclasses.dataclass(frozen=True, slots=True)
class NamedResult:
    """A result with the name of its file, which no other on the page has."""

    name: str
    result: Result


@dataclasses.dataclass(frozen=True, slots=True)
class Contender:
    """One engine with one network; `number` is its place on the page, `label` its shortest clear name there."""

    number: int
    label: str
    facts: Subject
    rows: Sequence[Row]

    @property
    def standing(self) -> str:
        """What is known of its masks, a key of `STANDINGS`."""
        certificate = self.facts.certificate
        if self.facts.random_weights or (certificate and not certificate.gated):
            return "random"
        if certificate and (certificate.proves or certificate.refutes):
            return "proven" if certificate.proves else "failed"
        if self._is_reference:
            return "reference"
        return "unmeasured" if self.facts.miou is None and self.facts.agreement is None else "measured"

    @property
    def _is_reference(self) -> bool:
        return not self.facts.peer and self.facts.runtime == "torch" and self.facts.precision == "fp32"

    @property
    def is_torch(self) -> bool:
        """Whether PyTorch runs it, in our hands or in another tool's."""
        return self.facts.runtime == "torch" or self.facts.engine.startswith("torch")

    @property
    def stage(self) -> Stage | None:
        """The last stage of its certificate that ran: the engine itself, where it could run."""
        stages = self.facts.certificate.stages if self.facts.certificate else ()
        return next((stage for stage in reversed(stages) if stage.agreement is not None), None)

    def row(self, view: "View") -> Row | None:
        return next((row for row in self.rows if (row.level, row.batch) == (view.level, view.batch)), None)


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """What was timed, `level`, at which batch size."""

    level: str
    batch: int

    @property
    def title(self) -> str:
        return f"{LEVELS.get(self.level, self.level)}, batch {self.batch}"


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """One network in one result file: engines whose accuracy can be compared."""

    number: int
    document: NamedResult
    model: str
    title: str
    subjects: Sequence[Contender]


@dataclasses.dataclass(frozen=True, slots=True)
class Timed:
    """One engine in one view, with its times there."""

    subject: Contender
    row: Row

    @property
    def median(self) -> float:
        return self.row.latency_ms.median

    @property
    def bounds(self) -> tuple[float, float]:
        interval = self.row.median_interval
        return (self.median, self.median) if interval is None else (interval.low, interval.high)

    @property
    def named(self) -> str:
        return f"{self.subject.label} ({numbers.ms(self.median)} ms)"


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """`timed`: every engine in the view that was judged, the fastest first; `pick`: the one to ship, if any."""

    group: Group
    view: View
    timed: Sequence[Timed]
    pick: Timed | None
    sentences: Sequence[str]
    notes: Sequence[str]


def views(subjects: Sequence[Contender]) -> list[View]:
    """What was timed: image to mask before host before device, small batches first."""
    found = {(row.level, row.batch) for subject in subjects for row in subject.rows}
    order = list(LEVELS)
    return [
        View(level, batch)
        for level, batch in sorted(
            found, key=lambda each: (order.index(each[0]) if each[0] in order else len(order), each[0], each[1])
        )
    ]


def ranked(subjects: Sequence[Contender], view: View) -> list[Timed]:
    """Those timed in this view, the fastest first."""
    timed = [Timed(subject, row) for subject in subjects if (row := subject.row(view)) is not None]
    return sorted(timed, key=lambda each: (each.median, each.subject.number))


def judge(group: Group) -> Verdict | None:
    """None where nothing of this network was timed."""
    found = views(group.subjects)
    if not found:
        return None
    view = found[0]
    timed = ranked(group.subjects, view)
    pick = _pick(timed)
    if pick is None:
        return Verdict(group, view, timed, None, _no_pick(timed), list(_conditions(group)))
    sentences = [_speed(pick, timed, view), _accuracy(pick, timed)]
    return Verdict(group, view, timed, pick, sentences, list(_notes(pick, timed, group)))


def _pick(timed: Sequence[Timed]) -> Timed | None:
    """The fastest of the most trusted kind there is; never one whose certificate failed, nor a peer before our own."""
    own = [each for each in timed if not each.subject.facts.peer]
    for pool in (own, timed):
        for standings in (TRUSTED, ("random",), ("measured",), ("unmeasured",)):
            fit = [each for each in pool if each.subject.standing in standings]
            if fit:
                return fit[0]
    return None


def _no_pick(timed: Sequence[Timed]) -> list[str]:
    reasons = [f"{each.named}: {_why_failed(each.subject)}" for each in timed]
    return [f"No engine keeps the masks of this network. {'; '.join(reasons)}."]


def _why_failed(subject: Contender) -> str:
    stage = subject.facts.certificate and subject.facts.certificate.failing
    where = stage.name if stage else "a stage"
    reason = stage.reason if stage and stage.reason else "its masks are not PyTorch's"
    return f"its certificate fails at “{where}”: {reason}"


# What the verdict says


def _speed(pick: Timed, timed: Sequence[Timed], view: View) -> str:
    work = "a photograph" if view.batch == 1 else f"for {view.batch} photographs"
    if view.level != "image_to_mask":
        work = "an image" if view.batch == 1 else f"for {view.batch} images"
    interval = pick.row.median_interval
    sure = f" (95%: {numbers.interval(interval)})" if interval else " (no interval was measured)"
    against = " and ".join(_against(pick, other) for other in _references(pick, timed))
    took = f"{numbers.ms(pick.median)} ms {work}{sure}, {OF_LEVEL.get(view.level, view.level)}"
    return f"{took}: {against}." if against else f"{took}."


def _references(pick: Timed, timed: Sequence[Timed]) -> list[Timed]:
    """The fastest PyTorch and the fastest of our own in fp32, besides the pick itself."""
    others = [each for each in timed if each is not pick]
    torch = next((each for each in others if each.subject.is_torch), None)
    fp32 = next((each for each in others if each is not torch and _is_own_fp32(each.subject)), None)
    return [each for each in (torch, fp32) if each]


def _is_own_fp32(subject: Contender) -> bool:
    return not subject.facts.peer and not subject.is_torch and subject.facts.precision == "fp32"


def _against(pick: Timed, other: Timed) -> str:
    if _overlap(pick, other):
        return f"as fast as {other.named} within the intervals"
    unsure = "" if pick.row.median_interval and other.row.median_interval else ", by the medians alone"
    if pick.median < other.median:
        return f"{numbers.times(other.median / pick.median)} times as fast as {other.named}{unsure}"
    return f"{numbers.times(pick.median / other.median)} times the time of {other.named}{unsure}"


def _overlap(one: Timed, other: Timed) -> bool:
    return one.bounds[0] <= other.bounds[1] and other.bounds[0] <= one.bounds[1]


def _accuracy(pick: Timed, timed: Sequence[Timed]) -> str:
    facts, standing = pick.subject.facts, pick.subject.standing
    agree = "" if facts.agreement is None else f"{numbers.percent(facts.agreement)} of the pixels are PyTorch's"
    scores = "; ".join(part for part in (agree, _miou(pick.subject, timed)) if part)
    if standing == "proven" and facts.certificate:
        return f"Its masks are proven{_proof(facts.certificate)}" + (f": {scores}." if scores else ".")
    if standing == "reference":
        return "It is PyTorch itself, the reference" + (f": {scores}." if scores else ".")
    if standing == "random":
        measured = f" Measured all the same: {scores}." if scores else ""
        return f"The weights are random, so the masks mean nothing: only the speed can be read here.{measured}"
    if standing == "measured":
        return f"Its masks were measured but not certified: {scores}."
    reason = facts.agreement_reason or facts.miou_reason
    return f"Its accuracy was not measured{f' ({reason})' if reason else ''}: check the masks before you ship it."


def _proof(certificate: Certificate) -> str:
    to = "" if certificate.proven_to is None else f" to the {certificate.proven_to}"
    return f"{to} on {_counted(certificate.images, 'image')}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _miou(subject: Contender, timed: Sequence[Timed]) -> str:
    own = subject.facts.miou
    if own is None:
        reason = subject.facts.miou_reason
        return "mIoU was not measured" + (f" ({reason})" if reason else "")
    of_torch = next(
        (each.subject.facts.miou for each in timed if each.subject.is_torch and each.subject is not subject), None
    )
    beside = "" if of_torch is None else f" (PyTorch: {numbers.score(of_torch)})"
    return f"mIoU {numbers.score(own)}{beside}"


def _notes(pick: Timed, timed: Sequence[Timed], group: Group) -> Iterator[str]:
    yield from _faster_but_failed(pick, timed)
    yield from _ties(pick, timed)
    yield from _peers(pick, timed)
    facts = pick.subject.facts
    if facts.delivered and facts.precision and facts.delivered != facts.precision:
        yield f"It was asked for {facts.precision} and computes in {facts.delivered}."
    if facts.certificate and facts.certificate.proven_to not in {None, "engine"}:
        yield f"The proof ends at the {facts.certificate.proven_to}: the engine itself was not compared."
    noisy = [each.subject.label for each in timed if each.row.noisy]
    if noisy:
        yield f"Noisy, so their interval stayed wide: {', '.join(noisy)}."
    yield from _conditions(group)


def _conditions(group: Group) -> Iterator[str]:
    if disturbances(group.document):
        yield "The machine was disturbed while this was timed; see above."


def disturbances(document: NamedResult) -> list[str]:
    conditions = document.result.conditions
    return [] if conditions is None else list(conditions.flags)


def _faster_but_failed(pick: Timed, timed: Sequence[Timed]) -> Iterator[str]:
    for each in timed:
        if each.subject.standing == "failed" and each.median < pick.median:
            yield f"{each.named} is faster, but {_why_failed(each.subject)}."


def _ties(pick: Timed, timed: Sequence[Timed]) -> Iterator[str]:
    near = [
        each.named
        for each in timed
        if each is not pick and each.subject.standing == pick.subject.standing and _overlap(pick, each)
    ]
    if near and pick.row.median_interval:
        yield f"Within its interval, so as good a choice for speed: {', '.join(near)}."


def _peers(pick: Timed, timed: Sequence[Timed]) -> Iterator[str]:
    peer = next((each for each in timed if each.subject.facts.peer and each is not pick), None)
    if peer is None:
        return
    agreement = peer.subject.facts.agreement
    masks = "its masks were not compared" if agreement is None else f"{numbers.percent(agreement)} of its pixels agree"
    part = "as long, within the intervals" if _overlap(pick, peer) else f"{pick.median / peer.median:.2f} of its time"
    yield f"The fastest other tool timed is {peer.named}: {masks}, and {pick.subject.label} takes {part}."


# Across the networks


def comparable_by_miou(subjects: Sequence[Contender], documents: Sequence[NamedResult]) -> bool:
    """The same images and an mIoU for every engine: then networks can be held against one another."""
    scored = {(document.result.data, document.result.images) for document in documents}
    named = all(document.result.data is not None for document in documents)
    return len(scored) == 1 and named and all(subject.facts.miou is not None for subject in subjects)


def across(verdicts: Sequence[Verdict]) -> str | None:
    """One sentence over the networks, where each has an engine to ship and all have an mIoU in one view."""
    picks = [each.pick for each in verdicts if each.pick]
    scored = [each for each in picks if each.subject.facts.miou is not None and each.subject.standing in TRUSTED]
    if len(scored) < len(verdicts) or len(picks) < 2 or len({each.view for each in verdicts}) > 1:  # noqa: PLR2004
        return None
    fastest = min(scored, key=lambda each: each.median)
    best = max(scored, key=lambda each: each.subject.facts.miou or 0.0)
    if fastest is best:
        return f"Of these networks {_network(fastest)} is both the fastest and the most accurate."
    return f"If any of these networks will do: {_network(fastest)} is the fastest, {_network(best)} the most accurate."


def _network(timed: Timed) -> str:
    facts = timed.subject.facts
    figures = f"{numbers.ms(timed.median)} ms, mIoU {numbers.score(facts.miou)}"
    return f"{facts.model} in {timed.subject.label} ({figures})"
