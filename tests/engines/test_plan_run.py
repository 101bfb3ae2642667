"""A plan at work, on a GPU that does everything as late and in as odd an order as CUDA permits."""

import functools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from fake_gpu import Bytes, FakeCuda, FakeNetwork, expected

from segdeploy.engines import RunOptions, _tensorrt, trt_rtx
from segdeploy.engines._plan_run import MOST_GRAPHS, SLOTS, PlanEngine
from segdeploy.errors import InvalidFileError, InvalidRequestError, MissingRuntimeError
from segdeploy.spec import Precision, Spec

if TYPE_CHECKING:
    from segdeploy.artifact import Artifact

HEIGHT, WIDTH, MAX_BATCH = 6, 8, 5
SEEDS = range(15)
PATIENCE_S = 20  # a test that waits longer has found a deadlock
COLOURS = tuple((index, 0, 0) for index in range(7))


def opened(
    cuda: FakeCuda,
    network: FakeNetwork | None = None,
    *,
    margin: int = 0,
    max_batch: int = MAX_BATCH,
    graphs: bool = True,
) -> PlanEngine:
    spec = Spec("unet", {}, tuple("abcdefg"), COLOURS, HEIGHT, WIDTH, margin=margin)
    network = network or FakeNetwork(cuda, margin)
    return PlanEngine(
        network.create_execution_context,
        cuda,
        spec,
        runtime="trt",
        max_batch=max_batch,
        delivered=Precision.FP16,
        captures=graphs,
    )


def pictures(count: int, seed: int = 0) -> Bytes:
    return np.random.default_rng([count, seed]).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(params=SEEDS)
def cuda(request: pytest.FixtureRequest) -> FakeCuda:
    return FakeCuda(request.param)


@pytest.fixture
def engine(cuda: FakeCuda) -> Iterator[PlanEngine]:
    with opened(cuda) as engine:
        yield engine
    assert cuda.closed


def in_time(*acts: Callable[[], Any]) -> list[Any]:
    """What each act gives, each in a thread of its own; a deadlock is a failure and no hang."""

    def work(act: Callable[[], Any], future: Future[Any]) -> None:
        try:
            future.set_result(act())
        except BaseException as error:  # noqa: BLE001 - told to whoever waits
            future.set_exception(error)

    futures: list[Future[Any]] = [Future() for _ in acts]
    for act, future in zip(acts, futures, strict=True):
        threading.Thread(target=work, args=(act, future), daemon=True).start()
    return [future.result(PATIENCE_S) for future in futures]


def test_batches_of_every_size_give_their_maps(engine: PlanEngine) -> None:
    """Again and again: the first runs are launched step by step, later ones as a graph."""
    for turn in range(4):
        for count in range(1, MAX_BATCH + 1):
            batch = pictures(count, turn)
            np.testing.assert_array_equal(engine.classify(batch), expected(batch))


@pytest.mark.parametrize("margin", [1, 2])
def test_class_maps_are_smaller_by_the_margin(margin: int) -> None:
    with opened(FakeCuda(), margin=margin) as engine:
        for count in (1, MAX_BATCH):
            found = engine.classify(pictures(count))
            assert found.shape == (count, HEIGHT - 2 * margin, WIDTH - 2 * margin)
            np.testing.assert_array_equal(found, expected(pictures(count), margin))


def test_views_give_the_same_maps_as_their_copies(engine: PlanEngine) -> None:
    """Flipped, strided and transposed images are what people have."""
    doubled = np.repeat(pictures(4), 2, axis=1)
    swapped = np.ascontiguousarray(pictures(3).transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    for view in (pictures(3)[:, :, ::-1], pictures(5)[::2], doubled[:, ::2], swapped):
        assert not view.flags.c_contiguous
        np.testing.assert_array_equal(engine.classify(view), expected(view))


def test_the_maps_are_written_into_the_array_that_is_given(engine: PlanEngine) -> None:
    room = np.full((9, HEIGHT, WIDTH), 99, np.uint8)
    for out in (room[:3], room[1::2][:3]):
        assert engine.classify(pictures(3), out) is out
        np.testing.assert_array_equal(out, expected(pictures(3)))


def test_a_map_that_was_given_is_not_overwritten_by_later_batches(engine: PlanEngine) -> None:
    """Slots are used again; what the caller holds is not part of one."""
    given = [engine.classify(pictures(2, seed)) for seed in range(6)]
    for seed, class_maps in enumerate(given):
        np.testing.assert_array_equal(class_maps, expected(pictures(2, seed)))


def test_a_batch_that_is_too_large_is_refused_with_the_option_that_allows_it(engine: PlanEngine) -> None:
    with pytest.raises(InvalidRequestError, match=f"at most {MAX_BATCH} images") as error:
        engine.submit(pictures(MAX_BATCH + 2))
    assert f"--max-batch {MAX_BATCH + 2}" in error.value.remedy
    np.testing.assert_array_equal(engine.classify(pictures(1)), expected(pictures(1)))


def test_a_batch_of_no_images_is_refused(engine: PlanEngine) -> None:
    with pytest.raises(InvalidRequestError, match=r"uint8 \(0, 6, 8, 3\)"):
        engine.submit(pictures(0))


@pytest.mark.parametrize("in_flight", [1, 2, 3, 7])
def test_tickets_may_be_collected_in_any_order(engine: PlanEngine, cuda: FakeCuda, in_flight: int) -> None:
    """More than there are slots as well: the oldest is brought back before its slot is used again."""
    order = np.random.default_rng([in_flight, cuda.count["event"]])
    for turn in range(4):
        counts = order.integers(1, MAX_BATCH + 1, in_flight)
        batches = [pictures(count, turn * 10 + index) for index, count in enumerate(counts)]
        tickets = [engine.submit(batch) for batch in batches]
        for index in order.permutation(in_flight):
            np.testing.assert_array_equal(engine.collect(tickets[index]), expected(batches[index]))


def test_a_batch_may_be_overwritten_as_soon_as_it_is_submitted(engine: PlanEngine) -> None:
    """The copy to the device runs later, and not from the caller's memory."""
    buffer = np.empty((3, HEIGHT, WIDTH, 3), np.uint8)
    tickets = []
    for seed in range(5):
        buffer[:] = pictures(3, seed)
        tickets.append(engine.submit(buffer))
    buffer[:] = 0
    for seed, ticket in enumerate(tickets):
        np.testing.assert_array_equal(engine.collect(ticket), expected(pictures(3, seed)))


def test_threads_that_classify_at_once_get_their_own_maps(engine: PlanEngine) -> None:
    def work(thread: int) -> bool:
        batches = [pictures(1 + (thread + turn) % MAX_BATCH, 100 * thread + turn) for turn in range(15)]
        return all(np.array_equal(engine.classify(batch), expected(batch)) for batch in batches)

    assert all(in_time(*(lambda thread=thread: work(thread) for thread in range(5))))


def test_threads_that_keep_tickets_in_flight_get_their_own_maps(engine: PlanEngine) -> None:
    """Three threads with two tickets each share two slots."""

    def work(thread: int) -> bool:
        right = True
        for turn in range(8):
            batches = [pictures(1 + (turn + index) % MAX_BATCH, 50 * thread + turn) for index in range(2)]
            tickets = [engine.submit(batch) for batch in batches]
            maps = [engine.collect(ticket) for ticket in reversed(tickets)]
            right &= all(
                np.array_equal(found, expected(batch)) for found, batch in zip(maps, batches[::-1], strict=True)
            )
        return right

    assert all(in_time(*(lambda thread=thread: work(thread) for thread in range(3))))


@pytest.mark.parametrize("held,done", [("to_host", ("to_device", "network")), ("network", ("to_device",))])
def test_copies_and_computation_of_two_batches_overlap(held: str, done: tuple[str, ...]) -> None:
    """The second upload waits for neither the first download nor the first computation."""
    cuda = FakeCuda()
    with opened(cuda) as engine:
        tickets = [engine.submit(pictures(2, seed)) for seed in range(SLOTS)]
        cuda.run_all_but(held)
        assert held not in cuda.done
        assert all(cuda.done.count(kind) == SLOTS for kind in done)
        for seed, ticket in enumerate(tickets):
            np.testing.assert_array_equal(engine.collect(ticket), expected(pictures(2, seed)))


def test_the_first_download_does_not_wait_for_the_second_computation() -> None:
    cuda = FakeCuda()
    with opened(cuda) as engine:
        first = engine.submit(pictures(1))
        cuda.run_all_but("to_host")
        engine.submit(pictures(2))
        cuda.run_all_but("network")
        assert cuda.done.count("to_host") == cuda.done.count("network") == 1
        np.testing.assert_array_equal(engine.collect(first), expected(pictures(1)))


def test_nothing_is_allocated_once_it_runs(engine: PlanEngine, cuda: FakeCuda) -> None:
    """Device memory, page-locked memory, streams and events are slow to make and are made once."""
    for turn in range(100):
        if turn == 3:
            before = {kind: cuda.count[kind] for kind in ("device", "pinned", "event", "stream")}
        engine.classify(pictures(1 + turn % MAX_BATCH, turn))
    assert {kind: cuda.count[kind] for kind in before} == before


def test_a_size_is_captured_in_its_second_run_and_launched_from_its_third() -> None:
    """In each slot: a graph holds the addresses of the memory it was captured with."""
    cuda = FakeCuda()
    with opened(cuda) as engine:
        seen = []
        for turn in range(5 * SLOTS):
            engine.classify(pictures(3, turn))
            seen.append((cuda.count["graph"], cuda.count["launch"]))
    assert seen == [(0, 0), (0, 0), (1, 0), (2, 0), *((2, launched) for launched in range(1, 7))]


def test_every_size_has_a_graph_of_its_own(engine: PlanEngine, cuda: FakeCuda) -> None:
    for turn in range(6 * SLOTS):
        for count in (1, 4):
            np.testing.assert_array_equal(engine.classify(pictures(count, turn)), expected(pictures(count, turn)))
    assert cuda.count["graph"] <= 2 * SLOTS
    assert cuda.count["launch"] > 0


def test_no_graph_is_captured_where_none_is_wanted(cuda: FakeCuda) -> None:
    with opened(cuda, graphs=False) as engine:
        for turn in range(8):
            np.testing.assert_array_equal(engine.classify(pictures(2, turn)), expected(pictures(2, turn)))
    assert cuda.count["capture"] == cuda.count["launch"] == 0


def test_a_size_that_cannot_be_captured_is_tried_once_in_each_slot(cuda: FakeCuda) -> None:
    cuda.captures = False
    with opened(cuda) as engine:
        for turn in range(12):
            np.testing.assert_array_equal(engine.classify(pictures(2, turn)), expected(pictures(2, turn)))
    assert cuda.count["capture"] == SLOTS
    assert cuda.count["launch"] == 0


def test_a_network_that_fails_while_it_is_captured_still_runs(cuda: FakeCuda) -> None:
    network = FakeNetwork(cuda)
    network.answers.extend([True, True, True, False])
    with opened(cuda, network) as engine:
        for turn in range(8):
            np.testing.assert_array_equal(engine.classify(pictures(2, turn)), expected(pictures(2, turn)))


def test_each_graph_has_a_context_that_nothing_changes(cuda: FakeCuda) -> None:
    """The fake fails where a graph is launched whose context was given another shape; TensorRT draws nonsense."""
    network = FakeNetwork(cuda)
    with opened(cuda, network) as engine:
        for turn, count in enumerate([1, 1, 1, 1, 1, 4, 1, 1, 2, 4, 4, 1, 4, 4, 2, 1]):
            np.testing.assert_array_equal(engine.classify(pictures(count, turn)), expected(pictures(count, turn)))
        assert len(network.contexts) == 1 + cuda.count["graph"]


def test_there_are_no_more_graphs_than_are_allowed() -> None:
    """Each holds device memory; a folder may end in batches of any size."""
    cuda = FakeCuda()
    sizes = MOST_GRAPHS + 3
    with opened(cuda, max_batch=sizes) as engine:
        for turn in range(4 * SLOTS):
            for count in range(1, sizes + 1):
                np.testing.assert_array_equal(engine.classify(pictures(count, turn)), expected(pictures(count, turn)))
    assert cuda.count["graph"] <= MOST_GRAPHS * SLOTS


@pytest.mark.parametrize("graphs", [True, False])
def test_the_time_on_the_device_is_told_for_each_run(cuda: FakeCuda, graphs: bool) -> None:  # noqa: FBT001 - a case
    with opened(cuda, graphs=graphs) as engine:
        waiting = engine.submit(pictures(2))
        found = engine.device_ms(pictures(3), runs=11)
        assert len(found) == 11
        assert all(ms > 0 for ms in found)
        np.testing.assert_array_equal(engine.collect(waiting), expected(pictures(2)))
        np.testing.assert_array_equal(engine.classify(pictures(3)), expected(pictures(3)))


@pytest.mark.parametrize("in_flight", [0, 1, 2, 3])
def test_closing_frees_everything_also_with_tickets_in_flight(cuda: FakeCuda, in_flight: int) -> None:
    """The fake's `close` fails where something still runs in the memory it frees."""
    with opened(cuda) as engine:
        for count in range(1, 4):
            engine.classify(pictures(count))
        for seed in range(in_flight):
            engine.submit(pictures(2, seed))
    engine.close()
    assert not cuda.alive


def test_a_closed_engine_is_refused(cuda: FakeCuda) -> None:
    with opened(cuda) as engine:
        ticket = engine.submit(pictures(1))
    acts: list[Callable[[], object]] = [
        lambda: engine.submit(pictures(1)),
        lambda: engine.collect(ticket),
        lambda: engine.device_ms(pictures(1), runs=1),
    ]
    for act in acts:
        with pytest.raises(InvalidRequestError, match="closed"):
            act()


def test_a_ticket_is_collected_once_and_where_it_was_given(engine: PlanEngine) -> None:
    ticket = engine.submit(pictures(1))
    with opened(FakeCuda()) as other, pytest.raises(InvalidRequestError, match="not of this engine"):
        other.collect(ticket)
    engine.collect(ticket)
    with pytest.raises(InvalidRequestError, match="was collected"):
        engine.collect(ticket)


@pytest.mark.parametrize("failure", [False, RuntimeError("the driver is gone")], ids=["false", "raises"])
def test_a_run_that_fails_is_an_error_and_costs_no_slot(cuda: FakeCuda, failure: Any) -> None:  # noqa: ANN401 - a case
    """More failures than there are slots; what was in flight before is right all the same."""
    network = FakeNetwork(cuda)
    with opened(cuda, network) as engine:
        waiting = engine.submit(pictures(4))
        for _ in range(2 * SLOTS):
            network.answers.append(failure)
            with pytest.raises((InvalidFileError, RuntimeError), match=r"failed on a batch of 2|the driver is gone"):
                in_time(lambda: engine.submit(pictures(2)))
        np.testing.assert_array_equal(engine.collect(waiting), expected(pictures(4)))
        for seed in range(4):
            np.testing.assert_array_equal(engine.classify(pictures(3, seed)), expected(pictures(3, seed)))


def test_a_plan_that_gives_no_context_is_refused() -> None:
    """As TensorRT does where its scratch memory does not fit."""
    cuda = FakeCuda()
    network = FakeNetwork(cuda)
    vars(network)["create_execution_context"] = lambda *_: None
    with pytest.raises(InvalidFileError, match="trt cannot run unet"):
        opened(cuda, network)


def gated(cuda: FakeCuda) -> tuple[threading.Semaphore, threading.Event]:
    """Threads that wait for the GPU say so, and go on at a signal."""
    arrived, gate = threading.Semaphore(0), threading.Event()

    def before_waiting() -> None:
        arrived.release()
        gate.wait(PATIENCE_S)

    cuda.before_waiting = before_waiting
    return arrived, gate


def started(act: Callable[[], Any]) -> Future[Any]:
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(act())
        except BaseException as error:  # noqa: BLE001 - told to whoever waits
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def test_all_who_wait_for_a_slot_go_on_although_nobody_collects() -> None:
    """Both slots come free, three wait: the third takes over what the first has in flight."""
    cuda = FakeCuda()
    engine = opened(cuda)
    arrived, gate = gated(cuda)
    collecting = [
        started(functools.partial(engine.collect, ticket))
        for ticket in [engine.submit(pictures(1)), engine.submit(pictures(2))]
    ]
    for _ in collecting:
        assert arrived.acquire(timeout=PATIENCE_S)
    cuda.before_waiting = lambda: None
    waiting = [started(lambda: engine.submit(pictures(3))) for _ in range(3)]
    time.sleep(0.2)
    gate.set()
    for ticket in [future.result(5) for future in waiting]:
        np.testing.assert_array_equal(engine.collect(ticket), expected(pictures(3)))
    engine.close()


def test_closing_waits_for_a_thread_that_collects() -> None:
    """It reads memory that would be freed under it."""
    cuda = FakeCuda()
    engine = opened(cuda)
    ticket = engine.submit(pictures(1))
    arrived, gate = gated(cuda)
    collecting = started(lambda: engine.collect(ticket))
    assert arrived.acquire(timeout=PATIENCE_S)
    cuda.before_waiting = lambda: None
    closing = started(engine.close)
    time.sleep(0.2)
    gate.set()
    closing.result(5)
    np.testing.assert_array_equal(collecting.result(5), expected(pictures(1)))
    assert cuda.closed


def test_closing_ends_the_wait_for_a_slot() -> None:
    cuda = FakeCuda()
    engine = opened(cuda)
    arrived, gate = gated(cuda)
    tickets = [engine.submit(pictures(1)), engine.submit(pictures(2))]
    collecting = [started(functools.partial(engine.collect, ticket)) for ticket in tickets]
    for _ in collecting:
        assert arrived.acquire(timeout=PATIENCE_S)
    cuda.before_waiting = lambda: None
    waiting = started(lambda: engine.submit(pictures(1)))
    time.sleep(0.2)
    closing = started(engine.close)
    time.sleep(0.2)
    gate.set()
    with pytest.raises(InvalidRequestError, match="closed"):
        waiting.result(5)
    closing.result(5)


def test_closing_after_a_run_that_failed_frees_what_nothing_uses() -> None:
    """The upload of the failed batch is still on its way."""
    cuda = FakeCuda()
    network = FakeNetwork(cuda)
    with opened(cuda, network) as engine:
        network.answers.append(False)
        with pytest.raises(InvalidFileError):
            engine.classify(pictures(2))
    assert cuda.closed


def test_a_failure_while_the_device_is_timed_costs_no_slot() -> None:
    cuda = FakeCuda()
    network = FakeNetwork(cuda)
    with opened(cuda, network, graphs=False) as engine:
        for _ in range(SLOTS):
            network.answers.extend([True] * 4 + [False])
            with pytest.raises(InvalidFileError):
                engine.device_ms(pictures(1), runs=2)
        started(lambda: engine.classify(pictures(1))).result(5)


def test_a_failure_while_a_slot_is_taken_over_costs_no_slot() -> None:
    """Nor the batch that is in it."""
    cuda = FakeCuda()
    engine = opened(cuda)
    tickets = [engine.submit(pictures(count)) for count in (1, 2)]

    def fail() -> None:
        raise MissingRuntimeError("the GPU is gone.", "Wait.")

    cuda.before_waiting = fail
    for _ in range(SLOTS + 1):
        with pytest.raises(MissingRuntimeError):
            started(lambda: engine.submit(pictures(3))).result(5)
    cuda.before_waiting = lambda: None
    for count, ticket in zip((1, 2), tickets, strict=True):
        np.testing.assert_array_equal(engine.collect(ticket), expected(pictures(count)))
    engine.close()


INSPECTED = """{"Layers": [
    {"Name": "fused", "LayerType": "CaskConvolution",
     "Metadata": "[ONNX Layer: down.0.conv/Conv]\\u001e[ONNX Layer: down.0.relu/Relu]"},
    {"Name": "Reformatting CopyNode", "LayerType": "Reformat", "Metadata": "[ONNX Layer: classifier/Conv]"}
]}"""


@pytest.mark.parametrize("graphs", [False, True])
def test_a_profile_names_what_the_engine_fused(monkeypatch: pytest.MonkeyPatch, graphs: bool) -> None:  # noqa: FBT001
    """TensorRT tells milliseconds by its own names, and the inspector what those are made of; the rest is in a name."""
    cuda = FakeCuda()
    network = FakeNetwork(cuda, information=INSPECTED)
    told = {"fused": 4.0, "Reformatting CopyNode": 1.0, "a/Conv + a/Relu": 0.5}
    monkeypatch.setattr(network, "layers", told)
    asked: list[RunOptions] = []

    def open_plan(_self: object, _plan: object, *, device: str, options: RunOptions) -> PlanEngine:
        assert device == "cuda"
        asked.append(options)
        return opened(cuda, network, graphs=options.cuda_graphs)

    monkeypatch.setattr(_tensorrt.Flavour, "open", open_plan)
    plan, options = cast("Artifact", None), RunOptions(cuda_graphs=graphs)
    found = trt_rtx.layer_ms(plan, device="cuda", images=pictures(2), runs=3, options=options)
    assert [(node.kind, node.ms, node.names) for node in found] == [
        ("CaskConvolution", 4.0, ("down.0.conv/Conv", "down.0.relu/Relu")),
        ("Reformat", 1.0, ("classifier/Conv",)),
        ("Layer", 0.5, ("a/Conv", "a/Relu")),
    ]
    assert not asked[0].cuda_graphs, "a graph has no layers"
    assert cuda.closed


def test_a_profiled_engine_goes_on_and_a_failure_costs_no_slot(cuda: FakeCuda) -> None:
    network = FakeNetwork(cuda)
    with opened(cuda, network) as engine:
        for _ in range(SLOTS + 1):
            network.answers.extend([True, False])
            with pytest.raises(InvalidFileError):
                engine.profiled(pictures(2), object(), runs=1)
        np.testing.assert_array_equal(engine.classify(pictures(3)), expected(pictures(3)))
        with pytest.raises(InvalidRequestError, match="at most"):
            engine.profiled(pictures(MAX_BATCH + 1), object(), runs=1)
