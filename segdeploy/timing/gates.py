"""What fails a benchmark: a wider precision than was asked for, less speed than fp32, less than an earlier file."""

from collections.abc import Iterator, Sequence

from segdeploy.proof import executed
from segdeploy.spec import Precision
from segdeploy.timing import intervals
from segdeploy.timing.result_types import Comparison, Failure, RatioToFp32, Result, Subject

NAMED = 5  # layers in a message


def failures(result: Result, *, require_delivered: bool, require_faster: bool) -> tuple[Failure, ...]:
    """Every gate that was not passed.

    An engine that draws other masks fails. One that does under nine tenths of the work that its graph gives to a low
    precision in it fails where the machine has units for that type; with `require_delivered` on every machine.
    `require_faster`: one that is slower than fp32 fails.
    """
    slower = slower_than_fp32(result.subjects, result.ratios) if require_faster else ()
    return (
        *refuted(result.subjects),
        *not_executed_as_asked(result.subjects, always=require_delivered),
        *slower,
        *regressions(result.comparison),
    )


def refuted(subjects: Sequence[Subject]) -> Iterator[Failure]:
    """Engines that draw other masks than PyTorch: their times are of something else."""
    for subject in subjects:
        if subject.certificate is not None and subject.certificate.refutes:
            failing = subject.certificate.failing
            reason = "" if failing is None else f": {failing.reason}"
            drawn = "the original's" if subject.certificate.reference == "ONNX Runtime" else "PyTorch's"
            what = f"{subject.engine} does not draw {drawn} masks{reason}."
            yield Failure(what=what, remedy="See where: segdeploy parity --bisect")


def not_executed_as_asked(subjects: Sequence[Subject], *, always: bool) -> list[Failure]:
    """Engines that compute wider than asked, where the machine could do better or `always`; each is named once."""
    found = {}
    for subject in subjects:
        if subject.precision is None or subject.delivered in {None, subject.precision}:
            continue
        precision, share = Precision(subject.precision), subject.delivered_share or 0.0
        if always or executed.has_units(precision, subject.device or "cpu"):
            wider = f"; wider: {', '.join(subject.wider[:NAMED])}" if subject.wider else ""
            asked = f"of the work that the graph gives to {precision}"
            what = f"{subject.engine} does {share:.1%} {asked} in {precision}{wider}."
            found[subject.engine] = Failure(what=what, remedy="Choose another runtime, or ask for what it delivers.")
    return list(found.values())


def slower_than_fp32(subjects: Sequence[Subject], ratios: Sequence[RatioToFp32]) -> Iterator[Failure]:
    """Low-precision engines whose whole interval lies above the time of fp32, and those that have no interval."""
    wider = {subject.engine: subject.wider for subject in subjects}
    for ratio in ratios:
        if ratio.interval is None:
            what = f"{ratio.engine} cannot be held against fp32: {intervals.TOO_FEW}."
            yield Failure(what=what, remedy="Let it run longer: --time-limit, or --runs.")
        elif ratio.interval.low > 1:
            names = ", ".join(wider[ratio.engine][:NAMED]) or "none: every layer is computed in the type asked for"
            what = f"{ratio.engine} takes {ratio.ratio:.2f} of the time of fp32. Layers computed wider: {names}."
            yield Failure(what=what, remedy="Use fp32 in this runtime, or another runtime.")


def regressions(comparison: Comparison | None) -> Iterator[Failure]:
    """What has become slower than the earlier file."""
    if comparison is None:
        return
    for row in comparison.rows:
        if row.regression and row.interval is not None and row.ratio is not None:
            where = f"{row.subject}, {row.level}, batch {row.batch},"
            times = f"takes {row.ratio:.3f} ({intervals.in_words(row.interval)}) of the time of the file in"
            limit = 1 + (comparison.max_regression or 0.0)
            what = f"{where} {times} {comparison.earlier}: more than {limit:.3f}."
            yield Failure(what=what, remedy="Ship the earlier file, or raise --max-regression.")
