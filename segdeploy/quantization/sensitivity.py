"""Which layers cost accuracy in a narrow type, and what it costs to give them float32 back.

Nothing here knows an engine: a candidate is measured through a callable. Every measurement is kept in a file, so that a
search that was cut off goes on where it was, and whoever asks can see each step.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segdeploy import artifact
from segdeploy.errors import InvalidRequestError

SCHEMA = 1
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


@dataclasses.dataclass(frozen=True, slots=True)
class Budget:
    """What may be lost: both limits hold."""

    min_agreement: float
    max_drop: float  # points of mIoU

    def __post_init__(self) -> None:
        if not (0 <= self.min_agreement <= 1 and 0 <= self.max_drop < math.inf):
            raise InvalidRequestError(
                f"a budget of {self.min_agreement} agreement and {self.max_drop} points is none.",
                "Give --min-agreement in 0..1 and --max-drop of 0 or more.",
            )

    def holds(self, quality: Quality) -> bool:
        return quality.agreement >= self.min_agreement and (quality.miou_drop or 0.0) <= self.max_drop

    def loss(self, quality: Quality) -> float:
        """What is lost, each part in units of what may be."""
        disagreement = (1 - quality.agreement) / max(1 - self.min_agreement, 1e-6)
        return disagreement + max(quality.miou_drop or 0.0, 0.0) / max(self.max_drop, 1e-3)


@dataclasses.dataclass(frozen=True, slots=True)
class Sensitivity:
    """What a layer gives when it alone goes back to float32, and what that costs (ms, or multiply-adds)."""

    layer: str
    quality: Quality
    regained: float
    cost: float

    @property
    def score(self) -> float:
        return self.regained / self.cost


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
        narrow = self.quality()
        found = []
        for layer in self._work:
            if layer not in self._always:
                quality = self.quality([layer])
                regained = self.budget.loss(narrow) - self.budget.loss(quality)
                found.append(Sensitivity(layer, quality, regained, self._cost(layer, narrow, quality)))
            done()
        return sorted(found, key=lambda each: (-each.score, each.layer))

    def steps(self, ranking: Callable[[], Sequence[Sensitivity]]) -> "Iterable[frozenset[str]]":
        """Sets of layers to leave in float32, each holding the one before: those inside the budget, then wider ones.

        `ranking` is asked for only where the narrow graph is outside. Whoever takes a step proves it, and takes the
        next one where the proof fails.
        """
        reverted = self._always
        if self.budget.holds(self.quality()):
            yield reverted
        for sensitivity in ranking():
            reverted = reverted | {sensitivity.layer}
            if self.budget.holds(self.quality(reverted)):
                yield reverted

    def _cost(self, layer: str, narrow: Quality, quality: Quality) -> float:
        if narrow.ms is None or quality.ms is None:
            return float(max(self._work[layer], 1))
        return max(quality.ms - narrow.ms, LEAST_COST * narrow.ms)


class Record:
    """The measurements of one search in a JSON file, which is written whole after each of them.

    `key` names everything the measurements depend on: a file with another key is started anew.
    """

    def __init__(self, path: Path, key: str, share: Callable[[frozenset[str]], float]) -> None:
        self.path = path
        self._key = key
        self._share = share
        self._measured: dict[frozenset[str], Quality] = {}
        self.accepted: frozenset[str] | None = None
        for in_float, quality, accepted in self._earlier():
            self._measured[in_float] = quality
            self.accepted = in_float if accepted else self.accepted

    def _earlier(self) -> list[tuple[frozenset[str], Quality, bool]]:
        """What an earlier search of the same key left; a damaged file counts as none."""
        try:
            document = json.loads(self.path.read_bytes())
            if (document["schema"], document["key"]) != (SCHEMA, self._key):
                return []
            found = [_step(entry) for entry in document["steps"]]
            for in_float, _, _ in found:
                self._share(in_float)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return []
        return found

    def find(self, in_float: frozenset[str]) -> Quality | None:
        return self._measured.get(in_float)

    def add(self, in_float: frozenset[str], quality: Quality) -> None:
        self._measured[in_float] = quality
        self.write()

    def accept(self, in_float: frozenset[str]) -> None:
        self.accepted = in_float
        self.write()

    def write(self) -> None:
        document = {"schema": SCHEMA, "key": self._key, "steps": self.steps()}
        artifact.write_atomically(self.path, (json.dumps(document, indent=1) + "\n").encode())

    def steps(self) -> list[dict[str, Any]]:
        """What was measured, in order; `front`: no other is at once narrower and better."""
        rows = [
            {
                "in_float": sorted(layers),
                **dataclasses.asdict(quality),
                "narrow_share": self._share(layers),
                "accepted": layers == self.accepted,
            }
            for layers, quality in self._measured.items()
        ]
        return [{**row, "front": not any(_beats(other, row) for other in rows)} for row in rows]


def _beats(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    better = one["narrow_share"] >= other["narrow_share"] and one["agreement"] >= other["agreement"]
    return better and (one["narrow_share"], one["agreement"]) != (other["narrow_share"], other["agreement"])


def _step(entry: Mapping[str, Any]) -> tuple[frozenset[str], Quality, bool]:
    """One measurement as `Record.steps` writes it. Raise ValueError, TypeError or KeyError for anything else."""
    values = [entry[name] for name in Quality.__slots__]
    agreement, *others = values
    if not math.isfinite(agreement) or not all(value is None or math.isfinite(value) for value in others):
        raise ValueError(f"{values} is no measurement")
    if not isinstance(entry["in_float"], list) or not isinstance(entry["accepted"], bool):
        raise TypeError(f"{entry} is no step")
    return frozenset(entry["in_float"]), Quality(*values), entry["accepted"]
