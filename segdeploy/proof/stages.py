"""Proof in pixels: whether each stage draws the masks that PyTorch draws.

A stage is judged by its class maps against PyTorch's. Pixels that PyTorch itself cannot decide (near-ties) are counted
apart, and so are pixels that a pooling window moved whose maximum is undecided (pool ties, SegNet alone).
"""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from segdeploy import images, metrics, models
from segdeploy.blocks import MaxPoolWithIndices, Network, space_to_depth
from segdeploy.data import dataset
from segdeploy.data.dataset import Picture
from segdeploy.engines import Engine
from segdeploy.proof import accuracy
from segdeploy.spec import Spec

SCHEMA = 2
LARGEST_TIE = 1e-3  # of the logits' range: however rough the arithmetic, a wider margin is no tie
MOST_WORST = 10  # images that are named
KEPT_BYTES = 2**28  # of PyTorch's class maps and near-ties
Mask = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What a float32 stage must keep: shares of pixels, every one that differs explained by a tie; points of mIoU."""

    explains: ClassVar[bool] = True
    min_agreement: float = 0.9999
    max_near_ties: float = 0.01  # above it, too little is left to judge
    max_pool_ties: float = 0.00002
    max_unexplained: float = 0.0
    max_drop: float = 0.05  # what the budget of fp16 allows; a rare class may move with a single near-tie

    def broken(self, found: Mapping[str, Any]) -> str | None:
        """Why a stage fails, or None."""
        if found["unexplained"] > self.max_unexplained:
            reason = f"{found['unexplained']:.5%} of the pixels differ and are no near-tie"
            return f"{reason}, above {self.max_unexplained:.5%}" if self.max_unexplained else reason
        if found["agreement"] < self.min_agreement:
            return f"only {found['agreement']:.4%} of the pixels agree, {self.min_agreement:.4%} are asked for"
        if found["near_ties"] > self.max_near_ties:
            ties = f"{found['near_ties']:.4%} of the pixels are near-ties in PyTorch itself"
            return f"{ties}, above {self.max_near_ties:.4%}"
        if found["pool_ties"] > self.max_pool_ties:
            return f"{found['pool_ties']:.5%} of the pixels moved with a pooling tie, above {self.max_pool_ties:.5%}"
        return _lost(found, self.max_drop)


@dataclasses.dataclass(frozen=True, slots=True)
class NarrowLimits:
    """What a stage of a narrower type may lose: agreement outside near-ties and, with truth, points of mIoU."""

    explains: ClassVar[bool] = False  # a narrower type moves pixels that no tie explains
    min_agreement: float
    max_drop: float

    def broken(self, found: Mapping[str, Any]) -> str | None:
        if found["decided_agreement"] < self.min_agreement:
            agreement = f"only {found['decided_agreement']:.4%} of the pixels that PyTorch decides agree"
            return f"{agreement}, {self.min_agreement:.4%} are asked for"
        return _lost(found, self.max_drop)


def _lost(found: Mapping[str, Any], max_drop: float) -> str | None:
    if found["miou_change"] is not None and -found["miou_change"] > max_drop:
        return f"{-found['miou_change']:.3f} points of mIoU are lost, above {max_drop:g}"
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """Limits that take the place of a precision's own, where they are given. `max_unexplained` is for float32 alone."""

    min_agreement: float | None = None
    max_drop: float | None = None
    max_unexplained: float | None = None

    def applied(self, stages: "Sequence[Stage]") -> "list[Stage]":
        """The stages with these limits; before a narrow one, the float32 graph keeps the others of its own."""
        narrow = any(not stage.limits.explains for stage in stages)
        return [dataclasses.replace(stage, limits=self._for(stage.limits, in_narrow=narrow)) for stage in stages]

    def _for(self, limits: "Limits | NarrowLimits", *, in_narrow: bool) -> "Limits | NarrowLimits":
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        only = {"max_unexplained"} if limits.explains and in_narrow else set(dataclasses.asdict(limits))
        return dataclasses.replace(limits, **{name: value for name, value in given.items() if name in only})


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """One link of the chain and what it must keep; without an engine, the reason why it cannot run here."""

    name: str
    engine: Engine | None
    limits: Limits | NarrowLimits = dataclasses.field(default_factory=Limits)
    reason: str | None = None


class Reference:
    """The network in PyTorch, in float32 as it was trained and in float64 to know what float32 cannot decide."""

    def __init__(self, network: Network, spec: Spec) -> None:
        logits = dataclasses.replace(spec, output="logits")
        self.spec = spec
        self.network = network
        self._seen: dict[bytes, tuple[metrics.ClassMap, Mask]] = {}
        self.single = models.deployed(network, logits).eval()
        self.double = models.deployed(copy.deepcopy(network), logits).double().eval()

    def class_map(self, image: NDArray[np.uint8]) -> tuple[metrics.ClassMap, Mask]:
        """(H, W, 3) -> the class map and which of its pixels are near-ties; kept, for a budget asks again."""
        key = hashlib.sha256(image.tobytes()).digest()
        if key not in self._seen:
            logits, exact = self._logits(image)
            seen = logits.argmax(dim=0).to(torch.uint8).numpy(), near_ties(logits, exact)
            if len(self._seen) * 2 * seen[0].size > KEPT_BYTES:
                return seen
            self._seen[key] = seen
        return self._seen[key]

    def pool_ties(self, image: NDArray[np.uint8]) -> Mask:
        """(H', W'): pixels within reach of a pooling window whose maximum float32 cannot decide."""
        with _pooled_maps(self.single) as single, _pooled_maps(self.double) as double:
            logits, _ = self._logits(image)
        reached = torch.zeros(logits.shape[1:], dtype=torch.bool)
        for level, (x, exact, reach) in enumerate(zip(single, double, self.network.pooling_reaches(), strict=True)):
            tied = _enlarged(_tied_windows(x, exact).float(), 2 ** (level + 1), reached.shape)
            reached |= F.max_pool2d(tied, 2 * reach + 1, stride=1, padding=reach)[0, 0].bool()
        return reached.numpy()

    def _logits(self, image: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        batch = torch.tensor(image[None])
        with torch.inference_mode():
            return self.single(batch)[0], self.double(batch)[0]


def near_ties(logits: Tensor, exact: Tensor) -> Mask:
    """(K, H, W) in float32 and float64 -> pixels whose two best logits differ by less than the arithmetic does.

    The margin is twice the largest difference between the two, and never above a thousandth of the logits' range.
    """
    if len(logits) == 1:
        return np.zeros(logits.shape[1:], bool)
    error = float((logits.double() - exact).abs().max())
    margin = min(2 * error, LARGEST_TIE * float(logits.max() - logits.min()))
    best = logits.topk(2, dim=0).values
    return ((best[0] - best[1]) < margin).numpy()


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """`agreement`: of the pixels PyTorch decides; `miou_drop`: points, None without truth; `ms`: the fastest."""

    agreement: float
    miou_drop: float | None
    ms: float


@dataclasses.dataclass(frozen=True, slots=True)
class _Seen:
    """What PyTorch says of one picture, for every stage to be compared with."""

    picture: Picture
    expected: metrics.ClassMap
    near_ties: Mask
    band: Mask
    moved_by_pool: Callable[[], Mask]  # asked for by few pictures
    truth: metrics.ClassMap | None


class _Tally:
    """What one stage adds up over the pictures."""

    def __init__(self, stage: Stage, spec: Spec) -> None:
        self.stage = stage
        self.spec = spec
        self.pixels = self.differing = self.outside = self.by_pool = 0
        self.band = self.band_differing = 0
        self.against_truth = np.zeros((len(spec.classes),) * 2, np.int64)
        self.against_pytorch = np.zeros_like(self.against_truth)
        self.boundary_f1: list[float] = []
        self.changed: list[dict[str, Any]] = []

    def add(self, seen: _Seen, found: metrics.ClassMap) -> None:
        """Count what one picture's masks have in common, and where they differ."""
        spec, differs = self.spec, found != seen.expected
        self.pixels += differs.size
        self.band += int(np.count_nonzero(seen.band))
        self.against_pytorch += metrics.confusion(seen.expected, found, classes=len(spec.classes), ignore_index=-1)
        self.against_truth += 0 if seen.truth is None else accuracy.against(seen.truth, found, spec)
        if (score := metrics.boundary_f1(seen.expected, found)) is not None:
            self.boundary_f1.append(score)
        if differs.any():
            self._add_differing(seen, differs)

    def _add_differing(self, seen: _Seen, differs: Mask) -> None:
        count, at_boundary = (int(np.count_nonzero(where)) for where in (differs, differs & seen.band))
        self.differing += count
        self.band_differing += at_boundary
        undecided = differs & ~seen.near_ties
        self.outside += int(np.count_nonzero(undecided))
        if undecided.any() and self.stage.limits.explains:
            self.by_pool += int(np.count_nonzero(undecided & seen.moved_by_pool()))
        facts = {"agreement": 1 - count / differs.size, "differing_pixels": count}
        self.changed.append({"image": seen.picture.image.name, **facts, "boundary_share": at_boundary / count})

    def report(self, tied_pixels: int, reference: metrics.Confusion) -> dict[str, Any]:
        if self.stage.engine is None:
            return {"name": self.stage.name, "agreement": None, "reason": self.stage.reason, "passed": None}
        engine = self.stage.engine
        decided = self.pixels - tied_pixels
        found = {
            "agreement": 1 - self.differing / self.pixels,
            "decided_agreement": 1 - self.outside / decided if decided else 1.0,
            "near_ties": tied_pixels / self.pixels,
            "pool_ties": self.by_pool / self.pixels if self.stage.limits.explains else None,
            "unexplained": (self.outside - self.by_pool) / self.pixels if self.stage.limits.explains else None,
            **_miou_change(reference, self.against_truth, self.spec),
        }
        broken = self.stage.limits.broken(found)
        facts = {"name": self.stage.name, "runtime": engine.runtime, "device": engine.device}
        return {**facts, **found, **self._where(), "passed": not broken, "reason": broken}

    def _where(self) -> dict[str, Any]:
        """Which pixels, classes and pictures the differing pixels are of; nothing here is judged."""
        inside = self.pixels - self.band
        return {
            "pixels": self.pixels,
            "differing_pixels": self.differing,
            "boundary_agreement": 1 - self.band_differing / self.band if self.band else None,
            "interior_agreement": 1 - (self.differing - self.band_differing) / inside if inside else None,
            "boundary_f1": float(np.mean(self.boundary_f1)) if self.boundary_f1 else None,
            "class_agreement": _by_class(metrics.iou(self.against_pytorch), self.spec),
            "worst_images": sorted(self.changed, key=lambda each: -each["differing_pixels"])[:MOST_WORST],
        }


def prove(
    reference: Reference,
    stages: Sequence[Stage],
    pictures: Sequence[Picture],
    *,
    done: Callable[[], None],
) -> dict[str, Any]:
    """Run every stage on every picture and compare with PyTorch; `done` is called after each picture."""
    spec = reference.spec
    tallies = [_Tally(stage, spec) for stage in stages]
    truth_of_reference = np.zeros((len(spec.classes),) * 2, np.int64)
    tied_pixels = 0
    for picture in pictures:
        image = images.prepared(images.read(picture.image), spec)
        seen = _seen(reference, picture, image)
        truth_of_reference += 0 if seen.truth is None else accuracy.against(seen.truth, seen.expected, spec)
        tied_pixels += int(np.count_nonzero(seen.near_ties))
        for tally in tallies:
            if tally.stage.engine is not None:
                tally.add(seen, tally.stage.engine.classify(image[None])[0])
        done()
    reports = [tally.report(tied_pixels, truth_of_reference) for tally in tallies]
    return {**_verdict(reports, len(pictures)), "limits": dataclasses.asdict(stages[-1].limits)}


def _seen(reference: Reference, picture: Picture, image: NDArray[np.uint8]) -> _Seen:
    expected, near_ties = reference.class_map(image)
    moved_by_pool = functools.cache(functools.partial(reference.pool_ties, image))
    band = metrics.boundary_band(expected)
    return _Seen(picture, expected, near_ties, band, moved_by_pool, _truth(picture, reference.spec))


class Judge:
    """Measures candidates on the same pictures; PyTorch sees each of them once."""

    def __init__(self, reference: Reference, pictures: Sequence[Picture], *, done: Callable[[], None]) -> None:
        self.spec = spec = reference.spec
        self._seen = []
        self._reference = np.zeros((len(spec.classes),) * 2, np.int64)
        for picture in pictures:
            image = images.prepared(images.read(picture.image), spec)
            expected, tied = reference.class_map(image)
            truth = _truth(picture, spec)
            self._reference += 0 if truth is None else accuracy.against(truth, expected, spec)
            self._seen.append((image, expected, tied, truth))
            done()

    def measure(self, engine: Engine) -> Measured:
        decided = differing = 0
        counts = np.zeros_like(self._reference)
        milliseconds = []
        for image, expected, tied, truth in self._seen:
            started = time.perf_counter()
            found = engine.classify(image[None])[0]
            milliseconds.append(1000 * (time.perf_counter() - started))
            decided += int(np.count_nonzero(~tied))
            differing += int(np.count_nonzero((found != expected) & ~tied))
            counts += 0 if truth is None else accuracy.against(truth, found, self.spec)
        change = _miou_change(self._reference, counts, self.spec)["miou_change"]
        agreement = 1 - differing / decided if decided else 1.0
        return Measured(agreement, None if change is None else -change, min(milliseconds))


def _verdict(stages: list[dict[str, Any]], pictures: int) -> dict[str, Any]:
    ran = [stage for stage in stages if stage["passed"] is not None]
    failed = [stage for stage in ran if not stage["passed"]]
    return {
        "schema": SCHEMA,
        "passed": not failed,
        "first_failing_stage": failed[0]["name"] if failed else None,
        "proven_to": ran[-1]["name"] if ran else None,
        "images": pictures,
        "stages": stages,
    }


def _miou_change(reference: metrics.Confusion, candidate: metrics.Confusion, spec: Spec) -> dict[str, Any]:
    """Points of mIoU, candidate minus PyTorch; null without truth."""
    before, after = metrics.miou(reference), metrics.miou(candidate)
    if before is None or after is None:
        return {"miou_change": None, "miou_change_by_class": None}
    each = 100 * (metrics.iou(candidate) - metrics.iou(reference))
    return {"miou_change": 100 * (after - before), "miou_change_by_class": _by_class(each, spec)}


def _by_class(values: NDArray[np.float64], spec: Spec) -> dict[str, float | None]:
    return {name: None if np.isnan(each) else float(each) for name, each in zip(spec.classes, values, strict=True)}


def _truth(picture: Picture, spec: Spec) -> metrics.ClassMap | None:
    if picture.mask is None:
        return None
    return dataset.read_truth(picture.mask, classes=len(spec.classes), ignore_index=spec.ignore_index)


@contextlib.contextmanager
def _pooled_maps(module: torch.nn.Module) -> Iterator[list[Tensor]]:
    """The input of every pooling with indices, in the order in which it runs."""
    maps: list[Tensor] = []
    pools = [child for child in module.modules() if isinstance(child, MaxPoolWithIndices)]
    handles = [pool.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0])) for pool in pools]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def _tied_windows(x: Tensor, exact: Tensor) -> Tensor:
    """(1, C, H, W) twice -> (1, 1, h, w): windows in which two positions are closer than the arithmetic is exact."""
    error = float((x.double() - exact).abs().max())
    even = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), value=-torch.inf)  # what is not there ties with nothing
    windows = space_to_depth(even)
    best = torch.stack(windows.chunk(4, dim=1)).topk(2, dim=0).values
    tied = (best[0] - best[1] < 2 * error) & (best[0] != 0)  # a zero is a zero wherever it is put
    return tied.any(dim=1, keepdim=True)


def _enlarged(windows: Tensor, factor: int, size: torch.Size) -> Tensor:
    """(1, 1, h, w) -> (1, 1, *size): every window over the pixels it stands for."""
    full = windows.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    H, W = size
    return F.pad(full, (0, max(0, W - full.shape[3]), 0, max(0, H - full.shape[2])))[..., :H, :W]
