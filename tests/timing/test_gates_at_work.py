"""The gates of a benchmark with real engines: the precision that is computed in, and the speed beside fp32."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import photographs

import segdeploy
from segdeploy import arithmetic, benchmarking, engines
from segdeploy.artifact import Artifact
from segdeploy.benchmarking import BenchOptions
from segdeploy.cli import cli
from segdeploy.low_precision import Executed
from segdeploy.making import ExportOptions
from segdeploy.proof import executed
from segdeploy.spec import Precision
from segdeploy.timing.latency import Effort
from segdeploy.timing.result_types import Interval, Result


@pytest.fixture(scope="module")
def benched(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `small` with its graphs in fp16 and int8."""
    folder = tmp_path_factory.mktemp("benched")
    shutil.copytree(small, folder, dirs_exist_ok=True)
    photos = photographs(folder / "photos", *(f"{index}.png" for index in range(4)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = ExportOptions(calibrate=photos, min_agreement=0.8, max_drop=100.0)
        segdeploy.export("unet", precision="fp16", options=options)
        segdeploy.export("unet", precision="int8", options=dataclasses.replace(options, forms=["unsigned"]))
    return folder


@pytest.fixture
def here(benched: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the test: that folder, which nothing here changes."""
    monkeypatch.chdir(benched)
    return benched


@pytest.fixture
def planted(engine_ms: Callable[[Callable[[Artifact], float]], None]) -> Callable[[Precision], None]:
    """Let engines of one precision take twice the time of the others."""

    def plant(precision: Precision) -> None:
        engine_ms(lambda file: 2.0 if file.precision is precision else 1.0)

    return plant


def bench(*names: str, runs: int = 6, **options: Any) -> Result:  # noqa: ANN401 - the options of bench
    return benchmarking.run("unet", BenchOptions(engines=names, device="cpu", effort=Effort(runs=runs), **options))


@pytest.mark.usefixtures("here")
def test_fp16_on_a_cpu_is_timed_and_is_no_failure() -> None:
    """No CPU multiplies in half precision through these runtimes: the row says so, and that is all."""
    report = bench("ort:fp16", "ov:fp16", runs=1)
    assert {row.delivered for row in report.rows} == {"fp32"}
    assert {row.delivered_share for row in report.rows} == {0}
    assert report.failures == ()


@pytest.mark.usefixtures("here")
def test_where_low_precision_is_required_fp16_on_a_cpu_fails_for_each_engine() -> None:
    failures = bench("ort:fp16", "ov:fp16", runs=1, require_delivered=True).failures
    assert [failure.what.split(" does ")[0] for failure in failures] == ["ort:fp16", "ov:fp16"]
    assert all("0.0% of the work that the graph gives to fp16 in fp16; wider: " in failure.what for failure in failures)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("units,failing", [(True, 1), (False, 0)], ids=["with byte units", "without"])
def test_int8_that_is_not_delivered_fails_where_the_machine_could(
    monkeypatch: pytest.MonkeyPatch,
    units: bool,  # noqa: FBT001 - a fact of the machine
    failing: int,
) -> None:
    monkeypatch.setattr(arithmetic, "instruction_set", lambda: "avx512-vnni" if units else "avx2")
    monkeypatch.setattr(engines.modules()["ort"], "low_precision_layers", lambda *_, **__: {})
    report = bench("ort:int8", runs=1)
    assert report.rows[0].delivered == "fp32"
    assert len(report.failures) == failing


@pytest.mark.usefixtures("here")
def test_int8_that_is_delivered_is_no_failure() -> None:
    report = bench("ort:int8", "ov:int8", runs=1, require_delivered=True)
    assert report.failures == ()
    assert {row.delivered for row in report.rows} == {"int8"}


@pytest.mark.usefixtures("here")
def test_ratios_are_within_a_runtime_and_for_each_batch() -> None:
    """`ov:int8` against `ort:fp32` would compare runtimes, not types."""
    report = bench("ort:fp32", "ort:int8", "ov:int8", runs=2, batches=[1, 2])
    assert [(ratio.engine, ratio.batch) for ratio in report.ratios] == [("ort:int8", 1), ("ort:int8", 2)]
    assert report.failures == (), "nobody asked for speed"


@pytest.mark.usefixtures("here")
def test_a_low_precision_engine_that_is_slower_fails_and_names_its_layers(
    planted: Callable[[Precision], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its float32 sibling is timed without being asked for, in the same interleaved run."""
    planted(Precision.INT8)
    wider = Executed(delivered=Precision.INT8, delivered_share=0.95, wider=("classifier/Conv",))
    monkeypatch.setattr(executed, "executed", lambda *_, **__: wider)
    report = bench("ort:int8", require_faster=True)
    assert [(row.runtime, row.precision) for row in report.rows[::2]] == [("ort", "fp32"), ("ort", "int8")]
    assert report.ratios[0].interval == Interval(low=2.0, high=2.0, assumes_independent=True)
    (failure,) = report.failures
    assert failure.what.startswith("ort:int8 takes ")
    assert failure.what.endswith("of the time of fp32. Layers computed wider: classifier/Conv.")


@pytest.mark.usefixtures("here")
def test_a_low_precision_engine_that_is_slower_without_a_wider_layer_says_that_too(
    planted: Callable[[Precision], None],
) -> None:
    planted(Precision.INT8)
    (failure,) = bench("ov:int8", require_faster=True).failures
    assert "every layer is computed in the type asked for" in failure.what


@pytest.mark.usefixtures("here")
def test_a_low_precision_engine_that_is_faster_does_not_fail(planted: Callable[[Precision], None]) -> None:
    planted(Precision.FP32)
    report = bench("int8", require_faster=True)
    assert report.failures == ()
    assert report.ratios[0].interval == Interval(low=0.5, high=0.5, assumes_independent=True)


def in_process(*arguments: str) -> Any:  # noqa: ANN401 - click's result
    """The command with what was planted in this process."""
    return CliRunner().invoke(cli, ["bench", "--model", "unet", "--device", "cpu", *arguments])


def two_lines(stderr: str) -> Sequence[str]:
    lines = stderr.splitlines()
    assert len(lines) == 2, stderr
    assert lines[0].startswith("Error: ")
    return lines


@pytest.mark.usefixtures("here")
def test_the_command_ends_with_4_where_a_low_precision_engine_is_slower(planted: Callable[[Precision], None]) -> None:
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
    assert "ort:fp16 does 0.0% of the work that the graph gives to fp16 in fp16" in two_lines(refused.stderr)[0]


@pytest.mark.usefixtures("here")
def test_a_graph_that_is_named_by_its_path_is_compared_with_its_float_graph() -> None:
    """Its manifest names the graph it was made from."""
    options = BenchOptions(engines=["ort:int8"], effort=Effort(runs=6), require_faster=True)
    report = benchmarking.run("export/unet.int8-unsigned.onnx", options)
    assert [ratio.engine for ratio in report.ratios] == ["ort:int8"]
