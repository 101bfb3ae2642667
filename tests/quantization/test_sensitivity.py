"""Which layers go back to float32: the order, both limits, and a record that survives whatever stops the search."""

import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdeploy.errors import SegdeployError
from segdeploy.low_precision import Budget
from segdeploy.quantization.sensitivity import LEAST_COST, Measure, Quality, Record, Search, Sensitivity, holds, loss

WORK = {"a": 100, "b": 200, "c": 400, "d": 300}
BUDGET = Budget(min_agreement=0.95, max_drop=0.5)
Table = dict[frozenset[str], Quality]
# Of d, the milliseconds are noise: it came out as fast in float32 as in low precision.
TIMED = {"": (0.90, 10.0), "a": (0.92, 12.0), "b": (0.91, 10.5), "c": (0.94, 18.0), "d": (0.905, 10.0)}


def table(agreements: Mapping[str, tuple[float, float | None]]) -> Table:
    """`"ab"` stands for the set of a and b; of each its agreement and its milliseconds."""
    return {frozenset(layers): Quality(agreement, None, ms) for layers, (agreement, ms) in agreements.items()}


def low_share(in_float: frozenset[str]) -> float:
    return 1 - sum(WORK[layer] for layer in in_float) / sum(WORK.values())


def record_in(folder: Path, key: str = "key") -> Record:
    return Record(folder / "unet.pareto.json", key, low_share)


def search_of(known: Table, folder: Path, *, budget: Budget = BUDGET, always: Iterable[str] = ()) -> Search:
    """What is not in the table need not be measured: asking for it is a KeyError."""
    return Search(known.__getitem__, WORK, budget, record=record_in(folder), always=always)


def stepped(search: Search) -> list[str]:
    return ["".join(sorted(layers)) for layers in search.steps(search.ranking)]


def no_ranking() -> Sequence[Sensitivity]:
    pytest.fail("nobody needs a ranking")


def document(folder: Path) -> Any:  # noqa: ANN401 - any JSON document
    return json.loads((folder / "unet.pareto.json").read_bytes())


# Search


def test_the_ranking_is_by_quality_regained_per_millisecond(tmp_path: Path) -> None:
    """In fiftieths of agreement a millisecond: d 0.1/0.1, b 0.2/0.5, a 0.4/2, c 0.8/8."""
    ranking = search_of(table(TIMED), tmp_path).ranking()
    assert [each.layer for each in ranking] == ["d", "b", "a", "c"]
    assert [each.cost for each in ranking] == pytest.approx([LEAST_COST * 10, 0.5, 2, 8])
    assert [each.score for each in ranking] == pytest.approx([1, 0.4, 0.2, 0.1])


@pytest.mark.parametrize("untimed", ["", "abcd"])
def test_where_no_runtime_can_time_it_the_cost_is_in_multiply_adds(tmp_path: Path, untimed: str) -> None:
    """The order is another: a regains as much for a hundred as c for two hundred."""
    known = table({layer: (agreement, None if layer in untimed else ms) for layer, (agreement, ms) in TIMED.items()})
    ranking = search_of(known, tmp_path).ranking()
    assert [each.layer for each in ranking] == ["a", "c", "b", "d"]
    assert [each.cost for each in ranking] == [100, 400, 200, 300]


def test_miou_counts_as_well_as_agreement(tmp_path: Path) -> None:
    known = {frozenset(layers): Quality(0.96, drop, 1.0) for layers, drop in [("", 0.9), ("a", 0.75), ("b", 0.4)]}
    known |= {frozenset("c"): Quality(0.97, 0.9, 1.0), frozenset("d"): Quality(0.96, 0.9, 1.0)}
    ranking = search_of(known, tmp_path).ranking()
    assert [each.layer for each in ranking] == ["b", "a", "c", "d"]
    assert [each.regained for each in ranking] == pytest.approx([0.5 / 0.5, 0.15 / 0.5, 0.01 / 0.05, 0])


def test_layers_alike_are_ranked_by_name(tmp_path: Path) -> None:
    """The same search gives the same graph."""
    known = {frozenset(layers): Quality(0.9, None, 1.0) for layers in ("", *WORK)}
    assert [each.layer for each in search_of(known, tmp_path).ranking()] == ["a", "b", "c", "d"]


def test_inside_the_budget_nothing_goes_back_and_nobody_ranks(tmp_path: Path) -> None:
    search = search_of(table({"": (0.95, 10.0)}), tmp_path)
    assert next(iter(search.steps(no_ranking))) == frozenset()
    assert len(search.record.steps()) == 1


def test_layers_go_back_in_that_order_until_inside(tmp_path: Path) -> None:
    """Sets outside the budget are measured and not offered."""
    known = table({**TIMED, "bd": (0.93, 11.0), "abd": (0.951, 13.0), "abcd": (1.0, 20.0)})
    search = search_of(known, tmp_path)
    assert stepped(search) == ["abd", "abcd"]
    assert [step.in_float for step in search.record.steps()][5:] == [
        ("b", "d"),
        ("a", "b", "d"),
        ("a", "b", "c", "d"),
    ]


def test_nothing_is_measured_beyond_the_step_that_is_taken(tmp_path: Path) -> None:
    """Each measurement runs the network over every image."""
    known = table({**TIMED, "bd": (0.96, 11.0)})
    search = search_of(known, tmp_path)
    assert next(iter(search.steps(search.ranking))) == frozenset("bd")


def test_where_a_proof_fails_the_next_step_is_wider(tmp_path: Path) -> None:
    """The images that decide were kinder than those that prove."""
    alone = dict.fromkeys("abcd", (0.97, 11.0))
    known = table({"": (0.96, 10.0), **alone, "ab": (0.94, 12.0), "abc": (0.98, 13.0), "abcd": (1.0, 14.0)})
    assert stepped(search_of(known, tmp_path)) == ["", "a", "abc", "abcd"]


def test_layers_that_are_float_in_any_case_are_in_every_set_and_not_ranked(tmp_path: Path) -> None:
    known = {frozenset(layers): Quality(0.9 + len(layers) / 50, None, 1.0) for layers in ("c", "ac", "bc", "cd", "abc")}
    search = search_of(known, tmp_path, always="c")
    assert [each.layer for each in search.ranking()] == ["a", "b", "d"]
    assert next(iter(search.steps(search.ranking))) == frozenset("abc")


def test_every_layer_of_a_ranking_is_a_tick_of_the_bar(tmp_path: Path) -> None:
    ticks: list[int] = []
    known = {frozenset(layers): Quality(0.9, None, 1.0) for layers in ("c", "ac", "bc", "cd")}
    search_of(known, tmp_path, always="c").ranking(done=lambda: ticks.append(1))
    assert len(ticks) == len(WORK)


@pytest.mark.parametrize(
    "quality,inside",
    [
        (Quality(0.95, 0.5, None), True),
        (Quality(0.95, None, None), True),
        (Quality(1.0, -3.0, None), True),
        (Quality(0.949, -3.0, None), False),
        (Quality(1.0, 0.501, None), False),
    ],
    ids=["both at their limit", "no labels", "a gain", "a gain that agrees too little", "a drop that agrees"],
)
def test_both_limits_hold_and_a_gain_is_no_loss(quality: Quality, inside: bool) -> None:  # noqa: FBT001
    """`mIoU` alone hides damage: a network can gain by it and draw other masks."""
    assert holds(BUDGET, quality) is inside


def test_a_gain_makes_up_for_nothing() -> None:
    assert loss(BUDGET, Quality(0.9, -3.0, None)) == loss(BUDGET, Quality(0.9, None, None))


@given(
    agreements=st.lists(st.floats(0, 1), min_size=16, max_size=16),
    drops=st.lists(st.floats(-2, 2), min_size=16, max_size=16),
    milliseconds=st.lists(st.floats(0.01, 100), min_size=16, max_size=16),
    limits=st.tuples(st.floats(0, 1), st.floats(0, 2)),
    always=st.sets(st.sampled_from(sorted(WORK)), max_size=2),
)
@settings(max_examples=60)
def test_every_step_is_inside_the_budget_and_holds_the_one_before(
    agreements: list[float],
    drops: list[float],
    milliseconds: list[float],
    limits: tuple[float, float],
    always: set[str],
) -> None:
    subsets = [frozenset(chosen) for size in range(5) for chosen in itertools.combinations(sorted(WORK), size)]
    qualities = itertools.starmap(Quality, zip(agreements, drops, milliseconds, strict=True))
    known = dict(zip(subsets, qualities, strict=True))
    budget = Budget(*limits)
    with tempfile.TemporaryDirectory() as folder:
        search = search_of(known, Path(folder), budget=budget, always=always)
        sets = list(search.steps(search.ranking))
    assert all(holds(budget, known[layers]) for layers in sets)
    assert all(always <= layers for layers in sets)
    assert all(one < other for one, other in itertools.pairwise(sets))
    assert (frozenset(always) in sets) == holds(budget, known[frozenset(always)])
    assert (frozenset(WORK) in sets) == holds(budget, known[frozenset(WORK)])


# Record


def interrupting(known: Table, *, after: int, measured: list[frozenset[str]]) -> Measure:
    """Ctrl-C in the middle of a measurement: what it measured is lost, no more."""

    def measure(in_float: frozenset[str]) -> Quality:
        if len(measured) == after:
            raise KeyboardInterrupt
        measured.append(in_float)
        return known[in_float]

    return measure


@pytest.mark.parametrize("after", [0, 1, 3, 5, 6])
def test_an_interrupted_search_goes_on_where_it_was(tmp_path: Path, after: int) -> None:
    known = table({**TIMED, "bd": (0.93, 11.0), "abd": (0.96, 13.0)})
    before: list[frozenset[str]] = []
    search = Search(
        interrupting(known, after=after, measured=before), WORK, BUDGET, record=record_in(tmp_path), always=()
    )
    with pytest.raises(KeyboardInterrupt):
        next(iter(search.steps(search.ranking)))
    assert len(before) == after
    later: list[frozenset[str]] = []
    resumed = Search(interrupting(known, after=99, measured=later), WORK, BUDGET, record=record_in(tmp_path), always=())
    assert next(iter(resumed.steps(resumed.ranking))) == frozenset("abd")
    assert not set(before) & set(later)
    assert len(before) + len(later) == 7
    assert [frozenset(step["in_float"]) for step in document(tmp_path)["steps"]] == before + later


def test_the_file_is_whole_after_every_measurement(tmp_path: Path) -> None:
    """Whoever watches it reads no half of it."""
    known = table({**TIMED, "bd": (0.96, 11.0)})
    seen: list[int] = []

    def measure(in_float: frozenset[str]) -> Quality:
        if seen or (tmp_path / "unet.pareto.json").exists():
            seen.append(len(document(tmp_path)["steps"]))
        return known[in_float]

    search = Search(measure, WORK, BUDGET, record=record_in(tmp_path))
    next(iter(search.steps(search.ranking)))
    assert seen == [1, 2, 3, 4, 5]
    assert [path.name for path in tmp_path.iterdir()] == ["unet.pareto.json"]


def test_what_was_measured_is_read_back_as_it_was(tmp_path: Path) -> None:
    """A share of pixels to the last digit, and null where there was no runtime and no label."""
    qualities = {frozenset(): Quality(1 / 3, None, None), frozenset("ab"): Quality(0.1 + 0.2, -1e-9, 1e-3)}
    written = record_in(tmp_path)
    for layers, quality in qualities.items():
        written.add(layers, quality)
    read = record_in(tmp_path)
    assert {layers: read.find(layers) for layers in qualities} == qualities
    assert read.find(frozenset("a")) is None


def test_a_record_of_another_key_is_started_anew(tmp_path: Path) -> None:
    """Other images, another graph: not one of its numbers holds."""
    record_in(tmp_path).add(frozenset(), Quality(0.9, None, None))
    other = record_in(tmp_path, "another")
    assert other.find(frozenset()) is None
    other.add(frozenset("a"), Quality(0.8, None, None))
    assert [step["in_float"] for step in document(tmp_path)["steps"]] == [["a"]]
    assert document(tmp_path)["key"] == "another"


def damaged(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def edited(written: bytes) -> bytes:
        fields = json.loads(written)
        change(fields)
        return json.dumps(fields).encode()

    return edited


@pytest.mark.parametrize(
    "damage",
    [
        lambda written: written[:-40],
        lambda _: b"",
        lambda _: b"\xff\xfe\x00",
        lambda _: b"[]",
        lambda _: b"3",
        damaged(lambda fields: fields.pop("steps")),
        damaged(lambda fields: fields.update(schema=0)),
        damaged(lambda fields: fields.update(steps=None)),
        damaged(lambda fields: fields["steps"].append(3)),
        damaged(lambda fields: fields["steps"][0].pop("ms")),
        damaged(lambda fields: fields["steps"][0].update(agreement=None)),
        damaged(lambda fields: fields["steps"][0].update(agreement=float("nan"))),
        damaged(lambda fields: fields["steps"][0].update(in_float=None)),
        damaged(lambda fields: fields["steps"][0].update(in_float=[["a"]])),
        lambda _: b"[" * 100_000,
    ],
    ids=[
        "cut off",
        "empty",
        "no text",
        "a list",
        "a number",
        "no steps",
        "another schema",
        "steps null",
        "a step that is none",
        "a step without ms",
        "agreement null",
        "agreement NaN",
        "layers null",
        "layers nested",
        "nested deeply",
    ],
)
def test_a_damaged_record_counts_as_none(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """It holds nothing that cannot be measured again."""
    record_in(tmp_path).add(frozenset(), Quality(0.9, None, 1.0))
    path = tmp_path / "unet.pareto.json"
    path.write_bytes(damage(path.read_bytes()))
    record = record_in(tmp_path)
    assert record.find(frozenset()) is None
    record.add(frozenset(), Quality(0.8, None, 2.0))
    assert len(document(tmp_path)["steps"]) == 1


def test_the_front_is_what_no_other_beats(tmp_path: Path) -> None:
    """More in low precision, or better: a gives more of both away than b."""
    record = record_in(tmp_path)
    for layers, agreement in {"": 0.90, "a": 0.95, "b": 0.94, "ab": 0.97, "abcd": 0.96}.items():
        record.add(frozenset(layers), Quality(agreement, None, None))
    front = {"".join(step["in_float"]): step["front"] for step in document(tmp_path)["steps"]}
    assert front == {"": True, "a": True, "b": False, "ab": True, "abcd": False}
    shares = [step["low_share"] for step in document(tmp_path)["steps"]]
    assert shares == pytest.approx([1, 0.9, 0.8, 0.7, 0])


def test_one_set_is_accepted(tmp_path: Path) -> None:
    record = record_in(tmp_path)
    for layers in ("", "a", "ab"):
        record.add(frozenset(layers), Quality(0.9, None, None))
    assert not any(step["accepted"] for step in document(tmp_path)["steps"])
    record.accept(frozenset("a"))
    assert [step["accepted"] for step in document(tmp_path)["steps"]] == [False, True, False]


def test_a_search_that_goes_on_keeps_what_was_accepted(tmp_path: Path) -> None:
    """`export --precision int8`, then `sensitivity`: the graph is still the one that was accepted."""
    record = record_in(tmp_path)
    record.add(frozenset(), Quality(0.99, None, None))
    record.accept(frozenset())
    record_in(tmp_path).add(frozenset("a"), Quality(0.995, None, None))
    assert [step["accepted"] for step in document(tmp_path)["steps"]] == [True, False]


def test_a_full_disk_ends_the_search_and_keeps_what_was_measured(small_disk: Path) -> None:
    record = record_in(small_disk)
    record.add(frozenset(), Quality(0.9, None, None))
    before = document(small_disk)
    (small_disk / "others").write_bytes(b"x" * 12_000)
    with pytest.raises(SegdeployError, match="No space left on device") as full:
        record.add(frozenset("a"), Quality(0.95, None, None))
    assert "nothing was lost" in full.value.remedy
    assert document(small_disk) == before
    assert sorted(path.name for path in small_disk.iterdir()) == ["others", "unet.pareto.json"]
