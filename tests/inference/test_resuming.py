"""A run goes on where the last one stood: nothing is done twice, what changed is done again, the tree is the same."""

import errno
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

import numpy as np
import pytest
from conftest import COMMAND, Run, photographs
from inference_folders import AGAIN, ORT, below, indices, segment, task

from segdeploy import artifact, cores, images
from segdeploy.data.layouts import cityscapes
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


def at(opacity: float) -> FolderOptions:
    return FolderOptions(opacity=opacity)


def times_below(folder: str) -> dict[str, int]:
    return {name: Path(folder, name).stat().st_mtime_ns for name in below(folder)}


@pytest.mark.usefixtures("photos")
def test_with_another_opacity_the_overlays_alone_are_made_again() -> None:
    both = ("mask", "overlay")
    segment("photos", write=both)
    usual, masks = tree("masks-overlays"), times_below("masks")
    assert counts(segment("photos", write=both, how=at(0.2))) == (3, 0, 0, 1)
    assert set(tree("masks-overlays").values()).isdisjoint(usual.values())
    assert counts(segment("photos", write=both, how=at(0.2))) == (0, 3, 0, 1)
    assert counts(segment("photos")) == (0, 3, 0, 1)
    assert times_below("masks") == masks
    assert counts(segment("photos", write=both)) == (3, 0, 0, 1)
    assert tree("masks-overlays") == usual
    assert times_below("masks") == masks


@pytest.mark.usefixtures("photos")
def test_how_an_overlay_was_made_is_remembered_while_others_are_added() -> None:
    segment("photos", write=("overlay",), how=at(0.2))
    overlays = times_below("masks-overlays")
    assert counts(segment("photos")) == (3, 0, 0, 1)
    assert counts(segment("photos", write=("mask", "overlay"), how=at(0.2))) == (0, 3, 0, 1)
    assert times_below("masks-overlays") == overlays
    assert counts(segment("photos", write=("overlay",))) == (3, 0, 0, 1)


@pytest.mark.usefixtures("photos")
def test_an_overlay_that_could_not_be_made_anew_is_not_taken_for_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one is still there: of the opacity that it was made with."""
    both = ("mask", "overlay")
    segment("photos", write=both)
    Path("masks/a.png").unlink()

    def refused(*_: object, **__: object) -> bytes:
        raise InvalidRequestError("too long.", "Cut it.")

    with monkeypatch.context() as patched:
        patched.setattr(images, "overlay_jpeg", refused)
        patched.setattr("segdeploy.inference.contact.Sheet.look", lambda *_: None)
        assert counts(segment("photos", write=both, how=at(0.2))) == (0, 0, 3, 1)
    assert Path("masks/a.png").is_file()
    assert counts(segment("photos", write=both)) == (0, 3, 0, 1)
    assert counts(segment("photos", write=both, how=at(0.2))) == (3, 0, 0, 1)


@pytest.mark.usefixtures("photos")
def test_shards_know_with_which_options_another_division_made_a_file() -> None:
    for index in (1, 2):
        segment("photos", write=("overlay",), how=FolderOptions(opacity=0.2, shard=f"{index}/2"))
    assert counts(segment("photos", write=("overlay",), how=at(0.2))) == (0, 3, 0, 1)
    assert counts(segment("photos", write=("overlay",), how=at(0.3))) == (3, 0, 0, 1)


@pytest.mark.usefixtures("photos")
def test_a_dry_run_counts_what_another_opacity_leaves_to_do() -> None:
    segment("photos", write=("overlay",))
    report = segment("photos", write=("overlay",), how=FolderOptions(opacity=0.2, dry_run=True))
    assert (report.left, report.unchanged) == (3, 0)


@pytest.mark.usefixtures("photos")
def test_a_journal_of_before_there_were_options_is_of_the_usual_ones() -> None:
    segment("photos", write=("overlay",))
    path = Path("masks/.segdeploy/journal.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(line.pop("made_as") == {} for line in lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert counts(segment("photos", write=("overlay",))) == (0, 3, 0, 1)
    assert counts(segment("photos", write=("overlay",), how=at(0.2))) == (3, 0, 0, 1)


@pytest.fixture
def _of_a_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes of the small network, as if Cityscapes had no others."""
    monkeypatch.setattr(cityscapes, "PUBLISHED_VALUES", {"thing": 7, "ground": 33})


@pytest.mark.usefixtures("photos", "_of_a_data_set")
def test_with_the_datas_own_values_masks_and_class_maps_are_made_again() -> None:
    every, original = ("mask", "npy", "overlay"), FolderOptions(values="original")
    segment("photos", write=every)
    usual, overlays = indices(Path("masks/a.png")), times_below("masks-overlays")
    assert counts(segment("photos", write=every, how=original)) == (3, 0, 0, 1)
    for values in (indices(Path("masks/a.png")), np.load("masks-npy/a.npy")):
        np.testing.assert_array_equal(values, np.where(usual == 1, 7, 33))
    assert times_below("masks-overlays") == overlays
    assert counts(segment("photos", write=every, how=original)) == (0, 3, 0, 1)
    assert counts(segment("photos", write=every)) == (3, 0, 0, 1)
    np.testing.assert_array_equal(indices(Path("masks/a.png")), usual)


@pytest.mark.usefixtures("photos", "_of_a_data_set")
def test_where_other_values_are_published_masks_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest is that of the values, not of the word `original`; where they are the indices, that of none."""
    original = FolderOptions(values="original")
    segment("photos", how=original)
    monkeypatch.setattr(cityscapes, "PUBLISHED_VALUES", {"thing": 8, "ground": 33})
    assert counts(segment("photos", how=original)) == (3, 0, 0, 1)
    monkeypatch.setattr(cityscapes, "PUBLISHED_VALUES", {"ground": 0, "thing": 1})
    assert counts(segment("photos", how=original)) == (3, 0, 0, 1)
    assert counts(segment("photos")) == (0, 3, 0, 1)


@pytest.mark.usefixtures("photos")
def test_values_that_nobody_knows_are_refused_before_anything_is_made() -> None:
    for dry_run in (False, True):
        with pytest.raises(InvalidRequestError, match="the 2 classes ground to thing are those of no data set"):
            segment("photos", how=FolderOptions(values="original", dry_run=dry_run))
    assert not Path("masks").exists()


@pytest.mark.usefixtures("photos")
def test_an_option_of_outputs_that_are_not_written_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="--opacity is for overlay, side, of which none is written"):
        segment("photos", how=at(0.2))
    assert not Path("masks").exists()


@pytest.mark.parametrize("opacity", [-0.1, 1.1, float("nan"), float("inf")])
def test_no_other_number_is_an_opacity(opacity: float) -> None:
    with pytest.raises(InvalidRequestError, match="an opacity of"):
        at(opacity)


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

    def meanwhile(path: Path, *, least: tuple[int, int] | None = None, most: int | None = None) -> images.Photograph:
        found = read(path, least=least, most=most)
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
        ({"include": ("*.JPG",), "exclude": ("SUB/",)}, ["a.png"], 3),
        ({"exclude": ("sub", "bad.png")}, ["a.png", "b.png"], 2),
    ],
)
@pytest.mark.usefixtures("photos")
def test_patterns_choose_images(options: dict[str, Any], done: list[str], skipped: int) -> None:
    report = segment("photos", how=FolderOptions(**options))
    assert (below("masks"), report.skipped, report.failed) == (done, skipped, ())


@pytest.mark.usefixtures("photos")
def test_patterns_that_leave_nothing_are_named() -> None:
    with pytest.raises(InvalidRequestError, match="--include and --exclude leave no image of photos"):
        segment("photos", how=FolderOptions(include=("*.tif",)))


@pytest.mark.usefixtures("photos")
def test_a_limit_counts_what_is_segmented() -> None:
    """Run again and again, it does all."""
    reports = [segment("photos", how=FolderOptions(limit=2)) for _ in range(3)]
    assert [report.done for report in reports] == [2, 1, 0]
    assert [report.left for report in reports][1:] == [0, 0]


@pytest.mark.usefixtures("photos")
def test_shards_make_the_tree_of_one_run() -> None:
    undisturbed = _undisturbed()
    reports = [segment("photos", how=FolderOptions(shard=f"{index}/3")) for index in (1, 2, 3)]
    assert sum(report.done for report in reports) == 3
    assert sum(len(report.failed) for report in reports) == 1
    assert tree("masks") == undisturbed
    assert sorted(path.name for path in Path("masks/.segdeploy").iterdir() if path.is_dir()) == [
        *("1-of-3", "2-of-3", "3-of-3")
    ]
    again = [segment("photos", how=FolderOptions(shard=f"{index}/3")) for index in (1, 2, 3)]
    assert sum(report.unchanged for report in again) == 3


@pytest.mark.usefixtures("photos")
def test_another_number_of_shards_goes_on_with_what_is_there() -> None:
    for index in (1, 2):
        segment("photos", how=FolderOptions(shard=f"{index}/2"))
    reports = [segment("photos", how=FolderOptions(shard=f"{index}/3")) for index in (1, 2, 3)]
    assert (sum(report.done for report in reports), sum(report.unchanged for report in reports)) == (0, 3)
    assert counts(segment("photos")) == (0, 3, 0, 1)


def test_a_clash_is_of_one_shard_however_the_folder_is_called(workspace: Path) -> None:
    """Two machines may mount it at two places."""
    photographs(workspace / "photos", "x.jpg", "x.png")
    (workspace / "mounted").symlink_to("photos")
    reports = [
        segment(folder, how=FolderOptions(shard=f"{index}/2")) for index, folder in ((1, "photos"), (2, "mounted"))
    ]
    assert (sum(report.done for report in reports), sum(len(report.failed) for report in reports)) == (1, 1)


def test_shards_do_of_clashing_names_the_same(workspace: Path) -> None:
    photographs(workspace / "photos", "x.jpg", "x.png", "y.jpg", "y.tif")
    undisturbed = _undisturbed()
    reports = [segment("photos", how=FolderOptions(shard=f"{index}/2")) for index in (1, 2)]
    assert sum(report.done for report in reports) == 2
    assert sorted(failure.path for report in reports for failure in report.failed) == ["photos/x.png", "photos/y.tif"]
    assert tree("masks") == undisturbed


def test_names_come_from_standard_input(photos: Path) -> None:
    strange = os.fsdecode(b"caf\xe9\xe2\x80\xa8b.png")  # not UTF-8, and U+2028, where Python too breaks lines
    (photos / "b.png").rename(photos / strange)
    for end in ("\n", "\0"):
        named = "".join(f"{photos / name}{end}" for name in ("a.jpg", "sub/c.jpg", strange))
        done = subprocess.run(
            [COMMAND, "infer", "-", *ORT, "--out", f"masks{ord(end)}"],
            input=os.fsencode(named),
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert below(f"masks{ord(end)}") == sorted(["a.png", "sub/c.png", strange])


def test_what_is_named_one_by_one_and_is_no_image_fails(run: Run, photos: Path) -> None:
    (photos / "notes.md").write_text("no image")
    (photos / "a").write_bytes((photos / "a.jpg").read_bytes())
    (names := photos.parent / "list.txt").write_text("photos/notes.md\nphotos/missing.bin\nphotos/a\n")
    done = run("infer", names, *ORT, "--json")
    assert (done.code, done.json()["done"], done.json()["skipped"]) == (5, 1, 0)
    assert [failure["path"] for failure in done.json()["failed"]] == [
        str(photos / "missing.bin"),
        str(photos / "notes.md"),
    ]
    assert below("masks") == ["a.png"]


def test_a_folder_that_cannot_be_looked_into_is_a_failure(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = os.walk

    def closed(root: Path, **options: Any) -> Any:  # noqa: ANN401 - as os.walk
        for folder, folders, files in walk(root, **options):
            if "sub" in folders:
                folders.remove("sub")
                options["onerror"](PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(photos / "sub")))
            yield folder, folders, files

    monkeypatch.setattr(os, "walk", closed)
    report = segment(str(photos))
    assert (report.done, [failure.path for failure in report.failed]) == (
        2,
        [str(photos / "bad.png"), str(photos / "sub")],
    )
    assert report.failed[1].reason == f"{photos / 'sub'} is a folder."
    assert counts(segment(str(photos), how=FolderOptions(exclude=("sub",)))) == (0, 2, 0, 1)


# What lies there already


def test_a_picture_that_segdeploy_did_not_write_stays(run: Run, workspace: Path) -> None:
    """A label beside its photo, for whoever gives the folder of the photos as --out."""
    photographs(workspace / "lab", "cat.jpg", "cat.png")
    before = (workspace / "lab/cat.png").read_bytes()
    done = run("infer", "lab/cat.jpg", "--out", "lab", *ORT)
    assert done.code == 5
    assert done.err == "failed: lab/cat.jpg: lab/cat.png is there, and segdeploy did not write it.\n"
    assert (workspace / "lab/cat.png").read_bytes() == before


def test_a_mask_of_another_photo_that_is_still_there_stays(run: Run, workspace: Path) -> None:
    """OUT is `masks` where nothing is said: two folders in two runs would lose the masks of the first."""
    for number, folder in enumerate(("one", "two")):
        photographs(workspace / folder, "a.png", height=40 + number, width=50)
    segment("one")
    before = tree("masks")
    done = run("infer", "two", *ORT)
    assert done.code == 5
    assert done.err == (
        "failed: two/a.png would replace what was made of one/a.png: give another --out; --again replaces it.\n"
    )
    assert tree("masks") == before
    assert segment("two", how=AGAIN).done == 1
    shutil.rmtree("two")
    assert segment("one").done == 1


@pytest.mark.parametrize("taken", [True, False])
def test_a_mask_that_is_taken_away_at_once_is_no_success(
    workspace: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch, *, taken: bool
) -> None:
    photographs(workspace / "photos", "a.png")
    found, _ = sources.find(["photos"], leave_out=Path("masks"))
    write = artifact.write_atomically

    def meanwhile(path: Path, data: bytes) -> None:
        write(path, data)
        if path.suffix == ".png":
            path.unlink() if taken else path.write_bytes(b"of somebody else")

    with monkeypatch.context() as patched:
        patched.setattr(artifact, "write_atomically", meanwhile)
        summary = folder_run.run(engine, task(found), done=lambda: None)
    assert (summary.done, len(summary.failed)) == (0, 1)
    again = folder_run.run(engine, task(found), done=lambda: None)
    assert again.done == (1 if taken else 0)  # what somebody else put there stays


def test_a_photo_that_is_gone_once_it_was_decoded_fails_alone(
    workspace: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An overlay shows every pixel: a photo that was decoded at a smaller scale is read once more."""
    photographs(workspace / "photos", "a.jpg", "b.jpg", height=700, width=900)
    found, _ = sources.find(["photos"], leave_out=Path("masks"))
    read = images.opened_photograph

    def meanwhile(path: Path, *, least: tuple[int, int] | None = None, most: int | None = None) -> images.Photograph:
        photo = read(path, least=least, most=most)
        if path.name == "a.jpg" and least is not None:
            path.unlink()
        return photo

    monkeypatch.setattr(images, "opened_photograph", meanwhile)
    summary = folder_run.run(engine, task(found, "overlay", how=FolderOptions(decode="scaled")), done=lambda: None)
    assert (summary.done, [failure.path for failure in summary.failed]) == (1, ["photos/a.jpg"])


def test_a_limit_is_not_used_up_by_what_is_tried_again(workspace: Path) -> None:
    photographs(workspace / "photos", "b.png")
    (workspace / "photos/a.png").symlink_to("nothing")
    report = segment("photos", how=FolderOptions(limit=1))
    assert (report.done, len(report.failed)) == (1, 1)


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
    skipped = "0 skipped (no images, excluded, or written by segdeploy)"
    assert second.out.splitlines() == [
        f"0 done, 3 unchanged, 0 failed, 1 failed before, {skipped}; masks in masks",
        "What failed before are the same files: masks/.segdeploy/failed.jsonl; --retry-failed tries them",
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
