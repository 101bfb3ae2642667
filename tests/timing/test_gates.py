"""What fails a benchmark: only what the whole interval, and the machine, give reason for."""

import pytest

from segdeploy import arithmetic
from segdeploy.timing import gates, intervals
from segdeploy.timing.result_types import Compared, Comparison, Failure, Interval, RatioToFp32, Subject

LAYERS = tuple(f"layer{index}/Conv" for index in range(7))


def interval(low: float, high: float) -> Interval:
    return Interval(low=low, high=high, assumes_independent=False)


def subject(engine: str = "ort:int8", *, delivered: str | None = "fp32", share: float = 0.5) -> Subject:
    runtime, _, precision = engine.partition(":")
    return Subject(
        id=f"unet {engine} cpu",
        model="unet",
        engine=engine,
        runtime=runtime,
        precision=precision,
        device="cpu",
        delivered=delivered,
        delivered_share=share,
        wider=LAYERS,
    )


@pytest.mark.parametrize("instructions,failing", [("avx512-vnni", 1), ("avx2", 0)], ids=["with byte units", "without"])
def test_a_wider_precision_fails_where_the_machine_could_do_better(
    monkeypatch: pytest.MonkeyPatch, instructions: str, failing: int
) -> None:
    monkeypatch.setattr(arithmetic, "instruction_set", lambda: instructions)
    assert len(gates.not_executed_as_asked([subject()], always=False)) == failing


def test_a_wider_precision_fails_everywhere_where_the_one_asked_for_is_required() -> None:
    (failure,) = gates.not_executed_as_asked([subject("ort:fp16", share=0.25)], always=True)
    layers = ", ".join(LAYERS[:5])
    assert failure.what == f"ort:fp16 does 25.0% of the work that the graph gives to fp16 in fp16; wider: {layers}."


@pytest.mark.parametrize("delivered", ["int8", None], ids=["as asked", "unknown"])
def test_what_is_computed_as_asked_or_cannot_be_known_fails_nothing(delivered: str | None) -> None:
    assert gates.not_executed_as_asked([subject(delivered=delivered)], always=True) == []


def test_an_engine_on_two_devices_fails_once() -> None:
    assert len(gates.not_executed_as_asked([subject(), subject()], always=True)) == 1


@pytest.mark.parametrize("low,failing", [(1.01, 1), (0.99, 0), (0.8, 0)])
def test_slower_than_fp32_needs_the_whole_interval(low: float, failing: int) -> None:
    """What could be as fast as well is noise."""
    ratio = RatioToFp32(engine="ort:int8", batch=1, ratio=1.2, interval=interval(low, 1.4))
    assert len(list(gates.slower_than_fp32([subject()], [ratio]))) == failing


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_what_has_no_interval_has_not_passed_beside_fp32(ratio: float) -> None:
    """Half the time in five runs may be chance."""
    without = RatioToFp32(engine="ort:int8", batch=1, ratio=ratio)
    (failure,) = gates.slower_than_fp32([subject()], [without])
    assert failure.what == f"ort:int8 cannot be held against fp32: {intervals.TOO_FEW}."
    assert failure.remedy == "Let it run longer: --time-limit, or --runs."


def test_a_regression_says_which_time_of_which_file() -> None:
    row = Compared(subject="a", level="host", batch=1, ratio=1.2, interval=interval(1.1, 1.3), regression=True)
    calm = Compared(subject="b", level="host", batch=1, ratio=1.2, interval=interval(1.0, 1.4))
    none = Compared(subject="c", comparable=False, reason="old.json has no c.")
    comparison = Comparison(earlier="old.json", max_regression=0.05, rows=(row, calm, none))
    assert list(gates.regressions(comparison)) == [
        Failure(
            what="a, host, batch 1, takes 1.200 (95 %: 1.100 to 1.300) of the time of the file in old.json: "
            "more than 1.050.",
            remedy="Ship the earlier file, or raise --max-regression.",
        )
    ]


def test_a_regression_says_that_it_assumes_independent_calls() -> None:
    assuming = Interval(low=1.1, high=1.3, assumes_independent=True)
    row = Compared(subject="a", level="host", batch=1, ratio=1.2, interval=assuming, regression=True)
    (failure,) = gates.regressions(Comparison(earlier="old.json", max_regression=0.05, rows=(row,)))
    assert "1.200 (95 % if calls are independent: 1.100 to 1.300) of the time" in failure.what


def test_without_an_earlier_result_nothing_is_a_regression() -> None:
    assert list(gates.regressions(None)) == []
