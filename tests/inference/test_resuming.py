"""A run goes on where the last one stood: nothing is done twice, what changed is done again, the tree is the same."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import COMMAND, Run, photographs
from inference_folders import AGAIN, ORT, below, segment, task

from segdeploy import cores, images
from segdeploy.engines import Engine
from segdeploy.errors import InvalidRequestError
from segdeploy.inference import run as folder_run
from segdeploy.inference import sources
from segdeploy.inference.journal import FileState
from segdeploy.inference.options import FolderOptions
from segdeploy.inference.report import Report

KILLS = 10


def tree(folder: str | Path) -> dict[str, bytes]:
    """Every file but the journal and the reports."""
    return {name: Path(folder, name).read_bytes() for name in below(folder)}


def counts(report: Report) -> tuple[int, int, int, int]:
    return report.done, report.unchanged, len(report.failed), len(report.failed_before)


def journal_lines(out: str = "masks") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, ".segdeploy/journal.jsonl").read_text().splitlines()]


@pytest.fixture
def photos(workspace: Path) -> Path:
    photographs(workspace / "photos", "a.jpg", "b.png", "sub/c.jpg")
    (workspace / "photos/bad.png").write_bytes(b"no image")
    return workspace / "photos"


@pytest.mark.usefixtures("photos")
def test_a_second_run_does_nothing() -> None:
    assert counts(segment("photos")) == (3, 0, 1, 0)
    first = tree("masks")
    times = {name: Path("masks", name).stat().st_mtime_ns for name in first}
    assert counts(segment("photos")) == (0, 3, 0, 1)
    assert {name: Path("masks", name).stat().st_mtime_ns for name in first} == times
    assert len(journal_lines()) == 4


def _new_photo(photos: Path) -> None:
    photographs(photos, "d.jpg")


def _other_pixels(photos: Path) -> None:
    photographs(photos, "b.png", height=44, width=52)


def _no_mask(_: Path) -> None:
    Path("masks/a.png").unlink()


def _other_mask(_: Path) -> None:
    Path("masks/a.png").write_bytes(b"altered")


def _mended(photos: Path) -> None:
    photographs(photos, "bad.png")


def _journal_gone(_: Path) -> None:
    Path("masks/.segdeploy/journal.jsonl").unlink()


def _touched(photos: Path) -> None:
    os.utime(photos / "a.jpg")
    os.utime("masks/b.png")


@pytest.mark.parametrize(
    "change,expected",
    [
        (_new_photo, (1, 3, 0, 1)),
        (_other_pixels, (1, 2, 0, 1)),
        (_no_mask, (1, 2, 0, 1)),
        (_other_mask, (1, 2, 0, 1)),
        (_mended, (1, 3, 0, 0)),
        (_journal_gone, (3, 0, 1, 0)),
        (_touched, (0, 3, 0, 1)),
    ],
)
def test_what_changed_is_done_again(
    photos: Path, change: Callable[[Path], None], expected: tuple[int, int, int, int]
) -> None:
    segment("photos")
    change(photos)
    assert counts(segment("photos")) == expected
    assert counts(segment("photos"))[0] == 0
    assert tree("masks") == _undisturbed()


def _undisturbed() -> dict[str, bytes]:
    segment("photos", out="undisturbed")
    return tree("undisturbed")


def test_a_touched_file_is_read_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its new times are noted: a copied folder is not read at every run."""
    segment("photos")
    os.utime(photos / "a.jpg")
    segment("photos")
    monkeypatch.setattr(FileState, "of", lambda *_: 1 / 0)
    assert counts(segment("photos")) == (0, 3, 0, 1)


def test_a_folder_and_its_masks_may_move(photos: Path) -> None:
    segment("photos")
    shutil.copytree("masks", "moved")
    shutil.copytree(photos, "elsewhere")
    assert counts(segment("elsewhere", out="moved")) == (0, 3, 0, 1)


@pytest.mark.usefixtures("photos")
def test_with_another_engine_all_is_done_again(run: Run) -> None:
    segment("photos")
    assert run("export", "--model", "unet", "--precision", "fp16").code == 0
    report = run("infer", "photos", "--engine", "ort:fp16", "--json").json()
    assert (report["done"], report["unchanged"], len(report["failed"])) == (3, 0, 1)
    report = run("infer", "photos", "--engine", "ort:fp16", "--json").json()
    assert (report["done"], report["unchanged"]) == (0, 3)


@pytest.mark.usefixtures("photos")
def test_with_another_decoding_all_is_done_again() -> None:
    segment("photos")
    assert counts(segment("photos", how=FolderOptions(decode="scaled")))[0] == 3


@pytest.mark.usefixtures("photos")
def test_an_output_that_is_added_makes_only_what_is_missing() -> None:
    segment("photos")
    before = {name: Path("masks", name).stat().st_mtime_ns for name in below("masks")}
    assert counts(segment("photos", write=("mask", "npy"))) == (3, 0, 0, 1)
    assert {name: Path("masks", name).stat().st_mtime_ns for name in below("masks")} == before
    assert below("masks-npy") == ["a.npy", "b.npy", "sub/c.npy"]
    assert counts(segment("photos", write=("mask", "npy"))) == (0, 3, 0, 1)
    assert counts(segment("photos")) == (0, 3, 0, 1)


@pytest.mark.usefixtures("photos")
def test_again_makes_everything_and_retry_failed_only_what_failed() -> None:
    segment("photos")
    assert counts(segment("photos", how=FolderOptions(retry_failed=True))) == (0, 3, 1, 0)
    assert counts(segment("photos", how=AGAIN)) == (3, 0, 1, 0)


@pytest.mark.usefixtures("photos")
def test_verify_reads_what_the_times_would_pass() -> None:
    segment("photos")
    mask = Path("masks/a.png")
    facts = mask.stat()
    damaged = bytearray(mask.read_bytes())
    damaged[-20] ^= 1
    with mask.open("r+b") as file:
        file.write(damaged)
    os.utime(mask, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert counts(segment("photos", how=FolderOptions(verify=True))) == (1, 2, 0, 1)
    assert tree("masks") == _undisturbed()


def test_a_file_that_changes_while_it_is_read_is_no_mask(
    photos: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A camera that is still writing: the mask would be of neither the old photo nor the new one."""
    read = images.opened_photograph

    def meanwhile(path: Path, *, least: tuple[int, int] | None) -> images.Photograph:
        found = read(path, least=least)
        if path.name == "b.png":
            photographs(photos, "b.png", height=30, width=70)
        return found

    found, _ = sources.find(["photos"], leave_out=Path("masks"))
    with monkeypatch.context() as patched:
        patched.setattr(images, "opened_photograph", meanwhile)
        summary = folder_run.run(engine, task(found), done=lambda: None)
    assert min(failure.reason for failure in summary.failed) == "photos/b.png changed while it was read."
    assert not Path("masks/b.png").exists()
    again = folder_run.run(engine, task(found), done=lambda: None)
    assert (again.done, again.unchanged, len(again.failed_before)) == (1, 2, 1)


def test_the_memory_or_the_engine_failing_is_not_held_against_a_file(
    workspace: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs(workspace / "photos", "a.jpg")
    found, _ = sources.find(["photos"], leave_out=Path("masks"))

    def exhausted(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(engine, "classify", exhausted)
        assert len(folder_run.run(engine, task(found), done=lambda: None).failed) == 1
    assert folder_run.run(engine, task(found), done=lambda: None).done == 1


# Which images


@pytest.mark.parametrize(
    "options,done,skipped",
    [
        ({"include": ("*.jpg",)}, ["a.png", "sub/c.png"], 2),
        ({"exclude": ("sub/*", "bad*")}, ["a.png", "b.png"], 2),
        ({"include": ("sub/*", "b.*"), "exclude": ("*.png",)}, ["sub/c.png"], 3),
    ],
)
@pytest.mark.usefixtures("photos")
def test_patterns_choose_images(options: dict[str, Any], done: list[str], skipped: int) -> None:
    report = segment("photos", how=FolderOptions(**options))
    assert (below("masks"), report.skipped, report.failed) == (done, skipped, ())


@pytest.mark.usefixtures("photos")
def test_patterns_that_leave_nothing_are_named() -> None:
    with pytest.raises(InvalidRequestError, match=r"no images in photos that --include and --exclude leave"):
        segment("photos", how=FolderOptions(include=("*.tif",)))


@pytest.mark.usefixtures("photos")
def test_a_limit_counts_what_is_segmented() -> None:
    """Run again and again, it does all."""
    reports = [segment("photos", how=FolderOptions(limit=2)) for _ in range(3)]
    assert [len(report.failed) + report.done for report in reports] == [2, 2, 0]
    assert [report.left for report in reports] == [2, 0, 0]


@pytest.mark.usefixtures("photos")
def test_shards_make_the_tree_of_one_run() -> None:
    undisturbed = _undisturbed()
    reports = [segment("photos", how=FolderOptions(shard=f"{index}/3")) for index in (1, 2, 3)]
    assert sum(report.done for report in reports) == 3
    assert sum(len(report.failed) for report in reports) == 1
    assert tree("masks") == undisturbed
    assert sorted(path.name for path in Path("masks/.segdeploy").iterdir()) == ["1-of-3", "2-of-3", "3-of-3"]
    again = [segment("photos", how=FolderOptions(shard=f"{index}/3")) for index in (1, 2, 3)]
    assert sum(report.unchanged for report in again) == 3


def test_shards_do_of_clashing_names_the_same(workspace: Path) -> None:
    photographs(workspace / "photos", "x.jpg", "x.png", "y.jpg", "y.tif")
    undisturbed = _undisturbed()
    reports = [segment("photos", how=FolderOptions(shard=f"{index}/2")) for index in (1, 2)]
    assert sum(report.done for report in reports) == 2
    assert sorted(failure.path for report in reports for failure in report.failed) == ["photos/x.png", "photos/y.tif"]
    assert tree("masks") == undisturbed


def test_names_come_from_standard_input(photos: Path) -> None:
    named = "".join(f"{photos / name}\n" for name in ("a.jpg", "sub/c.jpg"))
    done = subprocess.run([COMMAND, "infer", "-", *ORT], input=named, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert below("masks") == ["a.png", "sub/c.png"]


# What is said


@pytest.mark.usefixtures("photos")
def test_a_dry_run_counts_and_writes_nothing(run: Run) -> None:
    before = below(".")
    report = run("infer", "photos", *ORT, "--dry-run", "--json").json()
    assert (report["done"], report["unchanged"], report["left"]) == (0, 0, 4)
    assert below(".") == before
    assert not Path("masks").exists()
    segment("photos")
    _no_mask(Path())
    report = run("infer", "photos", *ORT, "--dry-run", "--json").json()
    assert (report["unchanged"], report["left"], len(report["failed_before"])) == (2, 1, 1)


@pytest.mark.usefixtures("photos")
def test_what_failed_before_still_fails_the_command(run: Run) -> None:
    """A script that looks at the exit code must not take the second run for a whole one."""
    first, second = (run("infer", "photos", *ORT) for _ in range(2))
    assert (first.code, second.code) == (5, 5)
    assert first.err.startswith("failed: photos/bad.png cannot be read: ")
    assert second.err == ""
    failed = "masks/.segdeploy/failed.jsonl"
    assert second.out.splitlines()[:2] == [
        "0 done, 3 unchanged, 0 failed, 0 skipped (no images, excluded, or written by segdeploy): masks",
        f"1 failed in an earlier run and are the same files: {failed}; --retry-failed tries them again",
    ]


@pytest.mark.usefixtures("photos")
def test_the_reports_lie_beside_the_journal(run: Run) -> None:
    shown = run("infer", "photos", *ORT, "--json").json()
    assert json.loads(Path("masks/.segdeploy/summary.json").read_text()) == shown
    (failure,) = map(json.loads, Path("masks/.segdeploy/failed.jsonl").read_text().splitlines())
    assert failure == shown["failed"][0]
    run("infer", "photos", *ORT)
    assert [json.loads(line) for line in Path("masks/.segdeploy/failed.jsonl").read_text().splitlines()] == [failure]


def test_fail_fast_stops_at_the_first_file_that_fails(run: Run, workspace: Path) -> None:
    photographs(workspace / "photos", *(f"{index:02}.png" for index in range(20)))
    (workspace / "photos/01.png").write_bytes(b"")
    done = run("infer", "photos", *ORT, "--fail-fast", "--json")
    assert done.code == 5
    assert done.json()["left"] > 0
    assert len(done.json()["failed"]) == 1


def test_a_second_run_at_the_same_time_stops(workspace: Path, engine: Engine, run: Run) -> None:
    photographs(workspace / "photos", "a.png")
    found, _ = sources.find(["photos"], leave_out=Path("masks"))
    codes = []

    def meanwhile() -> None:
        done = run("infer", "photos", *ORT)
        codes.append((done.code, done.err.splitlines()[0]))

    folder_run.run(engine, task(found), done=meanwhile)
    assert codes == [(2, "Error: another run writes into masks.")]


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_goes_on(workspace: Path) -> None:
    """Kill -9, ten times: the tree is as if nobody had; only what was in flight is done twice."""
    photographs(workspace / "photos", *(f"{index:03}.png" for index in range(300)), height=100, width=120)
    undisturbed = _undisturbed()
    moments = random.Random(0)  # noqa: S311
    killed = 0
    for _ in range(KILLS):
        lines = len(journal_lines()) if Path("masks/.segdeploy/journal.jsonl").exists() else 0
        with subprocess.Popen([COMMAND, "infer", "photos", *ORT], stdout=subprocess.DEVNULL) as process:
            more = lines + moments.randint(1, 30)
            while process.poll() is None and _written() < more:
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
    report = segment("photos")
    assert killed >= KILLS - 1
    assert report.done + report.unchanged == 300
    assert tree("masks") == undisturbed
    assert len(journal_lines()) <= 300 + KILLS * cores.usable()
    assert not list(Path("masks").glob(".*.part"))


def _written() -> int:
    path = Path("masks/.segdeploy/journal.jsonl")
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("engine", ["torch:fp32", "ov:fp32"])
@pytest.mark.usefixtures("photos")
def test_every_kind_of_engine_goes_on(run: Run, engine: str) -> None:
    reports = [run("infer", "photos", "--engine", engine, "--json").json() for _ in range(2)]
    assert [(report["done"], report["unchanged"]) for report in reports] == [(3, 0), (0, 3)]
