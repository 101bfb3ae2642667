"""A result can be run again: what was timed is kept, and a later run says whether it has become slower."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import Run

from segdeploy import artifact, benchmarking, proving, signature
from segdeploy.artifact import Artifact
from segdeploy.benchmarking import BenchOptions
from segdeploy.cli import cli
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.timing import pictures, results
from segdeploy.timing.latency import Effort
from segdeploy.timing.result_types import Comparison, Interval, Result, Subject

ORT = ["ort:fp32"]
QUICK = Effort(runs=8)
OF_ONE = Result(subjects=(Subject(id="a", model="unet", engine="ort:fp32"),), rows=())


def timed(**options: Any) -> Result:  # noqa: ANN401 - the options of bench
    return benchmarking.run("unet", BenchOptions(**{"engines": ORT, "effort": QUICK, "device": "cpu", **options}))


@pytest.fixture
def saved(workspace: Path) -> Path:
    """A result of the small network in ONNX Runtime and in PyTorch."""
    path = workspace / "old.json"
    timed(engines=["ort:fp32", "torch:fp32"], save=path)
    return path


@pytest.fixture
def slowed(engine_ms: Callable[[Callable[[Artifact], float]], None]) -> Callable[[float], None]:
    """Let what is in `export/` take longer than what was kept, by a factor."""

    def plant(factor: float) -> None:
        engine_ms(lambda file: 1.0 if ".files" in str(file.path) else factor)

    return plant


def kept_file(saved: Path, subject: Subject) -> Path:
    assert subject.kept is not None
    return saved.parent / subject.kept


def test_a_result_is_saved_with_the_files_that_were_timed(saved: Path) -> None:
    found = results.read(saved)
    assert found.kind == "bench"
    assert [subject.engine for subject in found.subjects] == ["ort:fp32", "torch:fp32"]
    for subject in found.subjects:
        assert artifact.sha256(kept_file(saved, subject)) == subject.sha256
        assert (subject.memory.host_peak_mb or 0) > 1
    assert artifact.read(kept_file(saved, found.subjects[0])).sha256 == found.subjects[0].sha256


def test_what_is_saved_is_what_was_found(workspace: Path) -> None:
    """What a command prints and what it saves are one document."""
    path = workspace / "new.json"
    found = timed(save=path)
    assert results.read(path) == found


def test_what_was_kept_outlives_the_next_export(saved: Path) -> None:
    """A link to the same bytes: segdeploy replaces files, it never writes into one."""
    kept = kept_file(saved, results.read(saved).subjects[0])
    before = kept.read_bytes()
    artifact.write_atomically(Path("export/unet.fp32.onnx"), b"another")
    assert kept.read_bytes() == before


def test_saving_again_forgets_what_is_no_longer_named(saved: Path) -> None:
    folder = saved.with_name("old.json.files")
    assert len(list(folder.iterdir())) == 2
    timed(save=saved)
    assert len(list(folder.iterdir())) == 1


def test_pictures_have_the_masks_of_every_engine(saved: Path) -> None:
    found = results.read(saved).pictures
    assert len(found) == pictures.SHOWN
    for picture in found:
        assert list(picture.masks) == ["unet ort:fp32 cpu", "unet torch:fp32 cpu"]
        assert picture.agreement["unet torch:fp32 cpu"] == 1.0
        assert max(picture.height, picture.width) <= pictures.LONGEST_SIDE


def comparison_of(report: Result) -> Comparison:
    assert report.comparison is not None
    return report.comparison


def test_a_twofold_slowdown_is_a_regression_at_every_level(saved: Path, slowed: Callable[[float], None]) -> None:
    slowed(2.0)
    report = timed(engines=["ort:fp32", "torch:fp32"], compare=saved, effort=Effort(runs=20))
    host = [row for row in comparison_of(report).rows if row.level == "host"]
    assert [row.regression for row in host] == [True, True]
    assert [row.interval for row in host] == [Interval(low=2.0, high=2.0, assumes_independent=True)] * 2
    assert any("unet ort:fp32 cpu, host, batch 1, takes " in failure.what for failure in report.failures)


def test_the_same_file_is_no_regression_of_itself(saved: Path, slowed: Callable[[float], None]) -> None:
    slowed(1.0)
    report = timed(compare=saved, effort=Effort(runs=20))
    rows = comparison_of(report).rows
    assert [row.regression for row in rows] == [False, False]
    assert report.failures == ()
    for row in rows:
        assert row.ratio is not None
        assert row.interval is not None
        assert row.interval.low <= row.ratio <= row.interval.high


@pytest.mark.parametrize("gate", [{"compare": Path("old.json")}, {"require_faster": True}])
def test_a_gate_that_could_not_judge_is_refused_before_anything_is_timed(gate: dict[str, Any]) -> None:
    """Five runs give no interval; a gate without one would pass whatever it is shown."""
    with pytest.raises(InvalidRequestError, match="5 runs give no interval") as refused:
        BenchOptions(effort=Effort(runs=5), **gate)
    assert refused.value.remedy == "Take 6 or more, or leave --runs out."
    assert BenchOptions(effort=Effort(runs=6), **gate).effort.runs == 6
    assert BenchOptions(effort=Effort(runs=5)).effort.runs == 5


def gone(path: Path, document: dict[str, Any]) -> None:
    (path.parent / document["subjects"][0]["kept"]).unlink()


def changed(path: Path, document: dict[str, Any]) -> None:
    artifact.write_atomically(path.parent / document["subjects"][0]["kept"], b"another")


def another_size(path: Path, document: dict[str, Any]) -> None:
    document["subjects"][0]["height"] = 128
    path.write_text(json.dumps(document))


def unknown(path: Path, document: dict[str, Any]) -> None:
    document["subjects"][0]["id"] = document["rows"][0]["subject"] = "another"
    document["rows"] = document["rows"][:1]
    document["subjects"] = document["subjects"][:1]
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    "damage,reason",
    [
        (gone, "is gone"),
        (changed, "is not the file"),
        (another_size, "height was 128, is 64"),
        (unknown, "has no unet"),
    ],
)
def test_what_cannot_be_run_again_is_not_comparable(
    saved: Path, damage: Callable[[Path, dict[str, Any]], None], reason: str
) -> None:
    damage(saved, json.loads(saved.read_bytes()))
    (row,) = comparison_of(timed(compare=saved)).rows
    assert (row.comparable, row.regression) == (False, False)
    assert reason in (row.reason or "")


@pytest.mark.parametrize(
    "text,code,what",
    [
        (None, 2, "there is no file old.json"),
        ("{", 3, "old.json is not JSON"),
        ('{"kind": "other"}', 3, "old.json is no result of segdeploy bench"),
        ('{"kind": "bench", "schema": 1, "rows": [1]}', 3, "old.json is of schema 1"),
    ],
)
@pytest.mark.usefixtures("workspace")
def test_a_foreign_result_is_refused_before_anything_is_timed(run: Run, text: str | None, code: int, what: str) -> None:
    if text is not None:
        Path("old.json").write_text(text)
    done = run("bench", "--engine", "ort:fp32", "--runs", "6", "--compare", "old.json")
    assert (done.code, done.out) == (code, "")
    assert what in done.err


def test_the_command_ends_with_3_where_nothing_could_be_compared(run: Run, saved: Path) -> None:
    """A gate that compared nothing has not been passed."""
    shutil.rmtree(saved.with_name("old.json.files"))
    done = run("bench", "--engine", "ort:fp32", "--runs", "6", "--compare", saved)
    assert done.code == 3
    assert "unet ort:fp32 cpu is not comparable: " in done.out
    assert "nothing could be compared" in done.err


def test_the_command_ends_with_4_past_a_regression(saved: Path, slowed: Callable[[float], None]) -> None:
    slowed(3.0)
    arguments = ["bench", "--engine", "ort:fp32", "--device", "cpu", "--runs", "20", "--compare", str(saved)]
    ended = CliRunner().invoke(cli, arguments)
    assert ended.exit_code == 4, ended.output
    assert "of the time of the file in" in ended.stderr
    assert "of the time of what was kept" in ended.stdout


@pytest.mark.usefixtures("workspace")
def test_a_full_disk_is_said_and_leaves_no_result(small_disk: Path) -> None:
    file = artifact.read(Path("export/unet.fp32.onnx"))
    with pytest.raises(InvalidFileError, match="No space left on device"):
        results.save(OF_ONE, small_disk / "new.json", {"a": file})
    assert not (small_disk / "new.json").exists()


@pytest.mark.usefixtures("workspace")
def test_another_disk_gets_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    file = artifact.read(Path("export/unet.fp32.onnx"))
    (subject,) = results.save(OF_ONE, Path("new.json"), {"a": file}).subjects
    assert artifact.read(kept_file(Path("new.json"), subject)).sha256 == file.sha256


@pytest.mark.usefixtures("workspace")
def test_all_engines_of_this_machine_are_timed() -> None:
    """What cannot be made is left out and named: an untrained network may not fit the budget of int8."""
    report = timed(every=True, effort=Effort(runs=1))
    timed_or_skipped = {row.engine for row in report.rows} | {each.engine for each in report.skipped}
    assert timed_or_skipped >= {"torch:fp32", "ort:fp32", "ov:fp32", "ort:int8", "ov:int8", "ort:fp16"}
    assert not [name for name in timed_or_skipped if name in {"ort:fp8", "ov:fp8"}], "no CPU computes in it"
    assert {row.engine for row in report.rows} >= {"torch:fp32", "ort:fp32", "ov:fp32"}


@pytest.mark.usefixtures("workspace")
def test_a_profile_names_the_networks_own_layers() -> None:
    (subject,) = timed(profile=True).subjects
    assert subject.profile is not None
    assert {"down.0.0.conv", "classifier"} <= {each.layer for each in subject.profile}
    assert sum(each.share for each in subject.profile) == pytest.approx(1)


def test_where_torch_is_missing_a_proof_that_counts_is_enough(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that only runs engines can time them; what nobody has proven is timed for nobody."""

    def missing(*_: object, **__: object) -> None:
        raise InvalidRequestError("PyTorch is not installed.", "Install it.")

    monkeypatch.setattr(proving, "judged", missing)
    row = timed(effort=Effort(runs=1)).rows[0]
    assert (row.agreement, row.agreement_reason) == (1.0, None)
    artifact.write_manifest(dataclasses.replace(artifact.read(workspace / "export/unet.fp32.onnx"), certificate=None))
    shutil.rmtree(signature.proofs_folder(), ignore_errors=True)  # what other tests proved
    with pytest.raises(InvalidRequestError, match="PyTorch is not installed"):
        timed(effort=Effort(runs=1))
