"""Asked and delivered: read from the runtime's own graph, said in every row, an error where that was asked for."""

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from conftest import photographs
from hypothesis import given, settings
from hypothesis import strategies as st

from segdeploy import benchmarking as timing
from segdeploy import engines, images, making, models
from segdeploy.artifact import Artifact
from segdeploy.checkpoints import checkpoint
from segdeploy.cli import cli
from segdeploy.data import dataset
from segdeploy.engines import Engine
from segdeploy.graphs.graph import Graph, convolution_work
from segdeploy.graphs.to_onnx import to_onnx
from segdeploy.progress import silent
from segdeploy.proof import executed
from segdeploy.quantization import search
from segdeploy.spec import Precision
from segdeploy.timing import latency
from segdeploy.timing.latency import Effort

EXAMPLES = Path(__file__).parents[2] / "examples" / "nuclei"
ENOUGH = 0.9
SAME_MASKS = 0.99  # of the pixels, int8 in two runtimes: sums of eight-bit products are exact, floats between are not
FASTER, EQUAL, SLOWER = 0.5, 1.0, 2.0


def fp32_of(name: str, folder: Path) -> Artifact:
    """The packaged network as a graph; its proof is another test's."""
    weights = making.weights_for(name)
    network, spec = checkpoint.load(weights.checkpoint.path)
    return to_onnx(network, spec, folder / f"{name}.fp32.onnx", weights=weights.described_for(folder))


def narrow_of(fp32: Artifact, precision: Precision, *, in_float: Callable[[str], bool] = lambda _: False) -> Artifact:
    """As narrow as can be, but for what is chosen; four images are enough to know what is computed in which type."""
    parts = search.parts_of(packaged=making.packaged_images()[:8], calibrate=None, data=None)
    forms = ["unsigned"] if precision is Precision.INT8 else []
    (recipe,) = search.recipes(fp32, precision, forms, parts, method=None, cache=None, progress=silent)
    chosen = {layer for layer in recipe.work if in_float(layer)}
    return search.write(recipe.described(chosen, search.BUDGETS[precision]), recipe.build(chosen), {})


@pytest.fixture(scope="module", params=models.names())
def packaged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The fp32 graph of each packaged network."""
    return fp32_of(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The packaged U-Net by precision."""
    fp32 = fp32_of("unet", tmp_path_factory.mktemp("unet"))
    return {"fp32": fp32, **{precision: narrow_of(fp32, precision) for precision in (Precision.INT8, Precision.FP16)}}


@pytest.fixture(scope="module")
def benched(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `small` with its graphs in fp16 and int8."""
    folder = tmp_path_factory.mktemp("benched")
    shutil.copytree(small, folder, dirs_exist_ok=True)
    photos = photographs(folder / "photos", *(f"{index}.png" for index in range(4)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        half = making.Narrow(Precision.FP16, calibrate=photos, min_agreement=0.5)
        for wanted in (half, dataclasses.replace(half, precision=Precision.INT8, forms=["unsigned"])):
            making.narrow("unet", wanted)
    return folder


@pytest.fixture
def here(benched: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the test: that folder, which nothing here changes."""
    monkeypatch.chdir(benched)
    return benched


def masks(file: Artifact, runtime: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with engines.open_engine(file, runtime=runtime, device="cpu") as engine:
        photos = [images.read(path) for path in dataset.image_files(EXAMPLES)]
        return np.stack([engine.classify(images.prepared(photo, file.spec)[None])[0] for photo in photos])


# What a runtime makes of a graph


def test_the_runtimes_compute_in_int8_what_is_asked_for_in_int8(packaged: Artifact) -> None:
    """Read from the optimised graph. Logits are never rounded, which keeps the classifier wide in ONNX Runtime."""
    graph = narrow_of(packaged, Precision.INT8)
    assert executed.asked(onnx.load(graph.path)) == {"int8": 1.0}
    for runtime in ("ort", "ov"):
        found = executed.delivered(graph, runtime=runtime, device="cpu")
        assert found["delivered"] is Precision.INT8
        assert found["delivered_share"] >= ENOUGH
        assert len(found["wider"]) <= (1 if runtime == "ort" else 0), found["wider"]


def test_int8_in_two_runtimes_draws_the_same_masks(unet: dict[str, Artifact]) -> None:
    """The form that both take is exact in both."""
    ort, ov, fp32 = masks(unet["int8"], "ort"), masks(unet["int8"], "ov"), masks(unet["fp32"], "ort")
    assert np.mean(ort == ov) >= SAME_MASKS
    assert np.mean(ort == fp32) >= SAME_MASKS


@pytest.mark.parametrize("runtime", ["ort", "ov"])
def test_fp16_on_a_cpu_is_float32_and_says_so(unet: dict[str, Artifact], runtime: str) -> None:
    found = executed.delivered(unet["fp16"], runtime=runtime, device="cpu")
    assert (found["delivered"], found["delivered_share"]) == (Precision.FP32, 0)
    work = convolution_work(Graph(onnx.load(unet["fp16"].path)))
    assert sorted(found["wider"]) == sorted(work)
    assert [work[layer] for layer in found["wider"]] == sorted(work.values(), reverse=True), "the most work first"


def test_what_runs_wider_in_the_signed_form_is_named(unet: dict[str, Artifact], tmp_path: Path) -> None:
    """ONNX Runtime leaves the convolutions of TensorRT's form in float32: that is why it has a form of its own."""
    parts = search.parts_of(packaged=making.packaged_images()[:4], calibrate=None, data=None)
    (recipe,) = search.recipes(
        unet["fp32"], Precision.INT8, ["signed"], parts, method="minmax", cache=None, progress=silent
    )
    made = dataclasses.replace(recipe.described([], search.BUDGETS[Precision.INT8]), path=tmp_path / "signed.onnx")
    signed = search.write(made, recipe.build([]), {})
    found = executed.delivered(signed, runtime="ort", device="cpu")
    assert (found["delivered"], found["delivered_share"]) == (Precision.FP32, 0)
    assert set(found["wider"]) == set(recipe.work)


def test_layers_left_in_float_are_not_held_against_the_runtime(unet: dict[str, Artifact]) -> None:
    """Delivered is a share of what was asked for, asked a share of everything."""
    graph = narrow_of(unet["fp32"], Precision.INT8, in_float=lambda layer: layer.startswith("up."))
    asked = executed.asked(onnx.load(graph.path))
    assert set(asked) == {"int8", "fp32"}
    assert asked["int8"] == pytest.approx(graph.made_by["narrow_share"])
    for runtime in ("ort", "ov"):
        found = executed.delivered(graph, runtime=runtime, device="cpu")
        assert found["delivered"] is Precision.INT8
        assert not [layer for layer in found["wider"] if layer.startswith("up.")]


def test_a_graph_without_one_narrow_layer_delivers_float32(unet: dict[str, Artifact]) -> None:
    """What `--min-agreement 1` may come to is called int8, and computes nothing in it."""
    graph = narrow_of(unet["fp32"], Precision.INT8, in_float=lambda _: True)
    assert executed.asked(onnx.load(graph.path)) == {"fp32": 1.0}
    assert executed.delivered(graph, runtime="ort", device="cpu")["delivered"] is Precision.FP32


def test_fp32_is_what_it_is(unet: dict[str, Artifact]) -> None:
    found = executed.delivered(unet["fp32"], runtime="ort", device="cpu")
    assert found == {"delivered": Precision.FP32, "delivered_share": 1.0, "wider": []}


@pytest.mark.parametrize(
    "share,kind", [(0.0, Precision.FP32), (0.89, Precision.FP32), (0.91, Precision.INT8), (1.0, Precision.INT8)]
)
def test_nine_tenths_of_the_work_are_enough(
    unet: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, share: float, kind: Precision
) -> None:
    """Of the multiply-adds, not of the layers."""
    work = {"large/Conv": round(10_000 * share), "small/Conv": 10_000 - round(10_000 * share)}
    monkeypatch.setattr("segdeploy.graphs.graph.convolution_work", lambda _: work)
    monkeypatch.setattr("segdeploy.graphs.graph.convolution_types", lambda _: dict.fromkeys(work, Precision.INT8))
    ort = engines.modules()["ort"]
    monkeypatch.setattr(ort, "narrow_convolutions", lambda *_, **__: {"large/Conv": Precision.INT8})
    found = executed.delivered(unet["int8"], runtime="ort", device="cpu")
    assert (found["delivered"], found["wider"]) == (kind, ["small/Conv"])
    assert found["delivered_share"] == pytest.approx(share)


# The ratio


def samples(seed: int, runs: int = 40) -> list[float]:
    """Milliseconds as they come: a floor, and now and then somebody else at work."""
    return [float(value) for value in 10 + np.random.default_rng(seed).lognormal(sigma=1, size=runs)]


def test_the_ratio_of_a_task_to_itself_is_one() -> None:
    found = latency.ratio(samples(0), samples(0))
    assert found == {"ratio": 1.0, "interval": [1.0, 1.0]}


def test_the_ratio_of_two_like_tasks_has_one_in_its_interval() -> None:
    low, high = latency.ratio(samples(0), samples(1))["interval"]
    assert low < EQUAL < high


@pytest.mark.parametrize("factor", [SLOWER, FASTER])
def test_the_ratio_of_twice_the_time_excludes_one(factor: float) -> None:
    found = latency.ratio([factor * value for value in samples(0)], samples(1))
    low, high = found["interval"]
    assert low < found["ratio"] < high
    assert high < EQUAL if factor == FASTER else low > EQUAL


def test_the_ratio_is_the_same_for_the_same_samples() -> None:
    """Drawn at random, from a seed that stands still."""
    assert latency.ratio(samples(0), samples(1)) == latency.ratio(samples(0), samples(1))


@given(
    pairs=st.lists(st.tuples(st.floats(0.01, 1e3), st.floats(0.01, 1e3)), min_size=1, max_size=30),
    factor=st.floats(0.01, 100),
)
@settings(deadline=None, max_examples=40)
def test_the_ratio_knows_no_unit(pairs: list[tuple[float, float]], factor: float) -> None:
    """Microseconds or minutes; and its interval never runs backwards."""
    ms, reference_ms = (list(values) for values in zip(*pairs, strict=True))
    found = latency.ratio(ms, reference_ms)
    scaled = latency.ratio([factor * value for value in ms], [factor * value for value in reference_ms])
    assert scaled["ratio"] == pytest.approx(found["ratio"])
    assert scaled["interval"] == pytest.approx(found["interval"])
    assert 0 < found["interval"][0] <= found["interval"][1]


# bench


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Precision], None]:
    """Let engines of one precision sleep before they answer."""
    honest = engines.open_engine

    def plant(precision: Precision) -> None:
        def opened(file: Artifact, **others: Any) -> Engine:  # noqa: ANN401 - what bench gives it
            engine = honest(file, **others)
            if file.precision is precision:
                classify = engine.classify

                def slowly(*batch: Any) -> object:  # noqa: ANN401 - what classify takes
                    time.sleep(0.02)
                    return classify(*batch)

                monkeypatch.setattr(engine, "classify", slowly)
            return engine

        monkeypatch.setattr(engines, "open_engine", opened)

    return plant


def bench(*names: str, runs: int = 6, **options: Any) -> dict[str, Any]:  # noqa: ANN401 - the options of bench
    return timing.run("unet", engine_names=names, device="cpu", effort=Effort(runs=runs), **options)


@pytest.mark.usefixtures("here")
def test_fp16_on_a_cpu_is_timed_and_is_no_failure() -> None:
    """No CPU multiplies in half precision through these runtimes: the row says so, and that is all."""
    report = bench("ort:fp16", "ov:fp16", runs=1)
    assert {row["delivered"] for row in report["rows"]} == {"fp32"}
    assert {row["delivered_share"] for row in report["rows"]} == {0}
    assert report["failures"] == []


@pytest.mark.usefixtures("here")
def test_where_the_narrow_type_is_required_fp16_on_a_cpu_fails_for_each_engine() -> None:
    failures = bench("ort:fp16", "ov:fp16", runs=1, require_delivered=True)["failures"]
    assert [failure["what"].split(" does ")[0] for failure in failures] == ["ort:fp16", "ov:fp16"]
    assert all("0.0% of its fp16 work in fp16; wider: " in failure["what"] for failure in failures)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("units,failing", [(True, 1), (False, 0)], ids=["with byte units", "without"])
def test_int8_that_is_not_delivered_fails_where_the_machine_could(
    monkeypatch: pytest.MonkeyPatch,
    units: bool,  # noqa: FBT001 - a fact of the machine
    failing: int,
) -> None:
    monkeypatch.setattr(executed, "_processor_flags", lambda: {"avx512_vnni"} if units else {"avx2"})
    monkeypatch.setattr(engines.modules()["ort"], "narrow_convolutions", lambda *_, **__: {})
    report = bench("ort:int8", runs=1)
    assert report["rows"][0]["delivered"] == "fp32"
    assert len(report["failures"]) == failing


@pytest.mark.usefixtures("here")
def test_int8_that_is_delivered_is_no_failure() -> None:
    report = bench("ort:int8", "ov:int8", runs=1, require_delivered=True)
    assert report["failures"] == []
    assert {row["delivered"] for row in report["rows"]} == {"int8"}


@pytest.mark.usefixtures("here")
def test_ratios_are_within_a_runtime_and_for_each_batch() -> None:
    """`ov:int8` against `ort:fp32` would compare runtimes, not types."""
    report = bench("ort:fp32", "ort:int8", "ov:int8", runs=2, batches=[1, 2])
    assert [(ratio["engine"], ratio["batch"]) for ratio in report["ratios"]] == [("ort:int8", 1), ("ort:int8", 2)]
    assert report["failures"] == [], "nobody asked for speed"


@pytest.mark.usefixtures("here")
def test_a_narrow_engine_that_is_slower_fails_and_names_its_layers(
    planted: Callable[[Precision], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its float32 sibling is timed without being asked for, in the same interleaved run."""
    planted(Precision.INT8)
    wider = {"delivered": Precision.INT8, "delivered_share": 0.95, "wider": ["classifier/Conv"]}
    monkeypatch.setattr(executed, "delivered", lambda *_, **__: wider)
    report = bench("ort:int8", require_faster=True)
    assert [(row["runtime"], row["precision"]) for row in report["rows"][::2]] == [("ort", "fp32"), ("ort", "int8")]
    assert report["ratios"][0]["interval"][0] > 1
    (failure,) = report["failures"]
    assert failure["what"].startswith("ort:int8 takes ")
    assert failure["what"].endswith("of the time of fp32. Layers computed wider: classifier/Conv.")


@pytest.mark.usefixtures("here")
def test_a_narrow_engine_that_is_slower_without_a_wider_layer_says_that_too(
    planted: Callable[[Precision], None],
) -> None:
    planted(Precision.INT8)
    (failure,) = bench("ov:int8", require_faster=True)["failures"]
    assert "every layer is computed in the type asked for" in failure["what"]


@pytest.mark.usefixtures("here")
def test_a_narrow_engine_that_is_faster_does_not_fail(planted: Callable[[Precision], None]) -> None:
    planted(Precision.FP32)
    report = bench("int8", require_faster=True)
    assert report["failures"] == []
    assert report["ratios"][0]["interval"][1] < 1


def in_process(*arguments: str) -> Any:  # noqa: ANN401 - click's result
    """The command with what was planted in this process."""
    return CliRunner().invoke(cli, ["bench", "--model", "unet", "--device", "cpu", *arguments])


def two_lines(stderr: str) -> Sequence[str]:
    lines = stderr.splitlines()
    assert len(lines) == 2, stderr
    assert lines[0].startswith("Error: ")
    return lines


@pytest.mark.usefixtures("here")
def test_the_command_ends_with_4_where_a_narrow_engine_is_slower(planted: Callable[[Precision], None]) -> None:
    """The table is printed all the same."""
    planted(Precision.INT8)
    ended = in_process("--engine", "ort:int8", "--runs", "6", "--require-faster")
    assert ended.exit_code == 4, ended.output
    assert "ort:int8 takes" in two_lines(ended.stderr)[0]
    assert "6 interleaved runs" in ended.stdout


@pytest.mark.usefixtures("here")
def test_the_command_ends_with_4_where_delivery_is_required_and_0_where_it_is_not() -> None:
    arguments = ("--engine", "ort:fp16", "--runs", "1")
    assert in_process(*arguments).exit_code == 0
    assert "(delivered: fp32)" in in_process(*arguments).stdout
    refused = in_process(*arguments, "--require-delivered")
    assert refused.exit_code == 4
    assert "ort:fp16 does 0.0% of its fp16 work in fp16" in two_lines(refused.stderr)[0]


@pytest.mark.usefixtures("here")
def test_a_graph_that_is_named_by_its_path_is_compared_with_its_float_graph() -> None:
    """Its manifest names the graph it was made from."""
    report = timing.run(
        "export/unet.int8-unsigned.onnx", engine_names=["ort:int8"], effort=Effort(runs=2), require_faster=True
    )
    assert [ratio["engine"] for ratio in report["ratios"]] == ["ort:int8"]
