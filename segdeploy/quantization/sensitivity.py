"""Which layers cost accuracy in low precision, and what it costs to give them float32 back.

Nothing here knows an engine: a candidate is measured through a callable. Every measurement is kept in a file, so that a
search that was cut off goes on where it was, and whoever asks can see each step.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from segdeploy import artifact, earlier_files, typed_json
from segdeploy.errors import SegdeployError
from segdeploy.low_precision import Budget, SearchStep
from segdeploy.spec import Precision

SCHEMA: Final = 2
LEAST_COST = 0.01  # of the whole network: below it, a layer's milliseconds are noise


@dataclasses.dataclass(frozen=True, slots=True)
class Quality:
    """How a candidate does on the pictures that rank.

    `agreement`: share of the pixels that PyTorch decides which agree with it. `miou_drop`: points lost against PyTorch,
    None without labels. `ms`: of one image, None where the form's runtime is not here.
    """

    agreement: float
    miou_drop: float | None
    ms: float | None


def holds(budget: Budget, quality: Quality) -> bool:
    """Whether both limits of a budget hold."""
    return quality.agreement >= budget.min_agreement and (quality.miou_drop or 0.0) <= budget.max_drop


def loss(budget: Budget, quality: Quality) -> float:
    """What is lost, each part in units of what may be."""
    disagreement = (1 - quality.agreement) / max(1 - budget.min_agreement, 1e-6)
    return disagreement + max(quality.miou_drop or 0.0, 0.0) / max(budget.max_drop, 1e-3)


@dataclasses.dataclass(frozen=True, slots=True)
class Sensitivity:
    """What a layer gives when it alone goes back to float32, and what that costs (ms, or multiply-adds).

    `score`: the one over the other.
    """

    layer: str
    quality: Quality
    regained: float
    cost: float
    score: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SensitivityReport:
    """The layers of a network in a low precision, the most quality for its cost first.

    `all_low`: with every layer in low precision that can be. `always_float`: those that cannot, and why. `images`: on
    which all of it was measured. `record`: the file that keeps the measurements.
    """

    schema: Literal[2] = 2
    model: str
    precision: Precision
    form: str | None
    images: int
    all_low: Quality
    always_float: Mapping[str, str]
    cost_unit: Literal["ms", "multiply-adds"]
    layers: tuple[Sensitivity, ...]
    record: Path


Measure = Callable[[frozenset[str]], Quality]


class Search:
    """Finds layers to leave in float32; `measure` is given their names.

    `work` holds each layer's multiply-adds; `always` names layers that are float32 whatever it costs.
    """

    def __init__(
        self,
        measure: Measure,
        work: Mapping[str, int],
        budget: Budget,
        *,
        record: "Record",
        always: Iterable[str] = (),
    ) -> None:
        self._measure = measure
        self._work = work
        self._always = frozenset(always)
        self.budget = budget
        self.record = record

    def quality(self, in_float: Iterable[str] = ()) -> Quality:
        """Measured once, then read from the record."""
        layers = self._always.union(in_float)
        known = self.record.find(layers)
        if known is None:
            known = self._measure(layers)
            self.record.add(layers, known)
        return known

    def ranking(self, *, done: Callable[[], None] = lambda: None) -> list[Sensitivity]:
        """Every layer, the most quality for its cost first."""
        all_low = self.quality()
        found = []
        for layer in self._work:
            if layer not in self._always:
                quality = self.quality([layer])
                regained = loss(self.budget, all_low) - loss(self.budget, quality)
                cost = self._cost(layer, all_low, quality)
                found.append(Sensitivity(layer, quality, regained, cost, regained / cost))
            done()
        return sorted(found, key=lambda each: (-each.score, each.layer))

    def steps(self, ranking: Callable[[], Sequence[Sensitivity]]) -> "Iterable[frozenset[str]]":
        """Sets of layers to leave in float32, each holding the one before: those inside the budget, then wider ones.

        `ranking` is asked for only where the graph with all layers in low precision is outside the budget. Whoever
        takes a step proves it, and takes the next one where the proof fails.
        """
        reverted = self._always
        if holds(self.budget, self.quality()):
            yield reverted
        for sensitivity in ranking():
            reverted = reverted | {sensitivity.layer}
            if holds(self.budget, self.quality(reverted)):
                yield reverted

    def _cost(self, layer: str, all_low: Quality, quality: Quality) -> float:
        if all_low.ms is None or quality.ms is None:
            return float(max(self._work[layer], 1))
        return max(quality.ms - all_low.ms, LEAST_COST * all_low.ms)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SearchRecord:
    """The JSON file of a search: `key` names everything that its measurements depend on."""

    schema: Literal[2] = SCHEMA
    key: str
    steps: tuple[SearchStep, ...]


def read_record(path: Path) -> SearchRecord | None:
    """What a search left; None where there is nothing, or a damaged file."""
    try:
        document = typed_json.parse(path.read_bytes(), where=str(path), remedy="")
        document = earlier_files.search_record(document)
        record = typed_json.convert(document, SearchRecord, where=str(path), remedy="")
    except (OSError, SegdeployError):
        return None
    finite = all(math.isfinite(step.agreement) for step in record.steps)
    return record if finite else None


class Record:
    """The measurements of one search in a JSON file, which is written whole after each of them.

    A file with another key is started anew.
    """

    def __init__(self, path: Path, key: str, share: Callable[[frozenset[str]], float]) -> None:
        self.path = path
        self._key = key
        self._share = share
        self._measured: dict[frozenset[str], Quality] = {}
        self.accepted: frozenset[str] | None = None
        for step in self._earlier():
            in_float = frozenset(step.in_float)
            self._measured[in_float] = Quality(step.agreement, step.miou_drop, step.ms)
            self.accepted = in_float if step.accepted else self.accepted

    def _earlier(self) -> Sequence[SearchStep]:
        """What an earlier search of the same key left; a record of layers that are not there counts as none."""
        record = read_record(self.path)
        if record is None or record.key != self._key:
            return ()
        try:
            for step in record.steps:
                self._share(frozenset(step.in_float))
        except KeyError:
            return ()
        return record.steps

    def find(self, in_float: frozenset[str]) -> Quality | None:
        return self._measured.get(in_float)

    def add(self, in_float: frozenset[str], quality: Quality) -> None:
        self._measured[in_float] = quality
        self.write()

    def accept(self, in_float: frozenset[str]) -> None:
        self.accepted = in_float
        self.write()

    def write(self) -> None:
        record = SearchRecord(key=self._key, steps=tuple(self.steps()))
        artifact.write_atomically(self.path, typed_json.to_text(record))

    def steps(self) -> list[SearchStep]:
        """What was measured, in order."""
        steps = [
            SearchStep(
                in_float=tuple(sorted(layers)),
                **dataclasses.asdict(quality),
                low_share=self._share(layers),
                accepted=layers == self.accepted,
                front=True,
            )
            for layers, quality in self._measured.items()
        ]
        return [dataclasses.replace(step, front=not any(_beats(other, step) for other in steps)) for step in steps]


def _beats(one: SearchStep, other: SearchStep) -> bool:
    better = one.low_share >= other.low_share and one.agreement >= other.agreement
    return better and (one.low_share, one.agreement) != (other.low_share, other.agreement)
