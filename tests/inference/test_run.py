"""A folder of photographs becomes a folder of masks: every file answered for, nothing half written or lost."""

import errno
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import COMMAND, SPEC, Run, photograph, photographs
from inference_folders import AGAIN, ORT, WITH_OVERLAYS, below, found, indices, segment, task, written
from numpy.typing import NDArray
from PIL import ExifTags, Image

from segdeploy import NullEngine, images, typed_json
from segdeploy.engines import Engine
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.inference import run as folder_run
from segdeploy.inference import sources
from segdeploy.inference.options import FolderOptions
from segdeploy.inference.report import EngineUsed, Failure, OutputFolder
from segdeploy.spec import Precision

MANY = 400
LARGEST_GROWTH, GROWTH_MB = 1.10, 16  # of the memory above the loaded engine, whichever allows more

MEMORY = """
import sys
from pathlib import Path
from segdeploy import api
from segdeploy.inference import run, sources
from segdeploy.inference.work import Task
from segdeploy.inference.options import FolderOptions
from segdeploy.engines import RunOptions

def peak_mb():  # of this program alone: getrusage counts what the parent held before
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

def task(images):
    options = FolderOptions(again=True)
    return Task(sources=images, out=Path("masks"), made_with="test", options=options)

with api.open("unet", engine="ort:fp32", options=RunOptions(threads=1)) as engine:
    images, _ = sources.find([sys.argv[1]], leave_out=Path("masks"))
    run.run(engine, task(images[:1]), done=lambda: None)
    before = peak_mb()
    assert run.run(engine, task(images), done=lambda: None).done == len(images)
    print(peak_mb() - before)
"""


def links(folder: Path, count: int, *, height: int, width: int) -> Path:
    """As many names of one photograph: a large folder that takes no time to make."""
    photographs(folder, "0000.jpg", height=height, width=width)
    for index in range(1, count):
        (folder / f"{index:04}.jpg").hardlink_to(folder / "0000.jpg")
    return folder


def cut_off(signal_number: int, *, after: int) -> tuple[int, str, str]:
    """Start `infer photos` and send a signal once there are some masks."""
    with (
        subprocess.Popen(
            [COMMAND, "infer", "photos", *ORT, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        while len(list(Path("masks").glob("*.png"))) < after:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal_number)
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


# What is in a mask


def test_a_mask_is_what_the_engine_draws_at_photo_size(workspace: Path, engine: Engine) -> None:
    photographs(workspace / "photos", "a.png", height=90, width=150)
    segment("photos")
    expected = engine.segment(photograph(90, 150))
    with Image.open("masks/a.png") as mask:
        assert (mask.format, mask.mode, mask.size) == ("PNG", "P", (150, 90))
        palette = mask.getpalette()
        assert palette is not None
        assert palette[:6] == [value for colour in SPEC.colours for value in colour]
        np.testing.assert_array_equal(np.array(mask), expected)
    assert set(np.unique(expected)) == {0, 1}


def test_a_turned_photo_has_a_mask_that_lies_on_it(workspace: Path, engine: Engine) -> None:
    """EXIF says 6: to be shown, the stored pixels are turned by 90 degrees to the right."""
    upright = photograph(120, 70)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    (workspace / "photos").mkdir()
    Image.fromarray(np.rot90(upright).copy()).save("photos/turned.png", exif=exif)
    segment("photos")
    np.testing.assert_array_equal(indices(workspace / "masks/turned.png"), engine.segment(upright))


def test_an_overlay_shows_the_photo_in_the_colours_of_its_mask(workspace: Path, engine: Engine) -> None:
    photographs(workspace / "photos", "a.png", height=240, width=320)
    segment("photos", write=WITH_OVERLAYS)
    photo = photograph(240, 320)
    expected = images.overlay(photo, engine.segment(photo), SPEC.colours)
    shown = images.read(workspace / "masks-overlays/a.jpg")
    assert np.abs(shown.astype(int) - expected).mean() < 4  # JPEG
    assert np.abs(shown.astype(int) - photo).mean() > 20


def test_a_later_run_rewrites_the_same_bytes(workspace: Path) -> None:
    photographs(workspace / "photos", "a.jpg", "b.png", "sub/c.webp")
    segment("photos", write=WITH_OVERLAYS)
    names = [Path(folder, name) for folder in ("masks", "masks-overlays") for name in below(folder)]
    first = {name: name.read_bytes() for name in names}
    names[0].write_bytes(b"of an older network")
    segment("photos", write=WITH_OVERLAYS, how=AGAIN)
    assert {name: name.read_bytes() for name in names} == first
    assert len(first) == 6


# What is written


@pytest.mark.parametrize("kinds", [("npy",), ("overlay", "npy"), ("npy", "mask", "npy"), ("overlay", "mask", "npy")])
def test_what_was_asked_for_is_written_and_nothing_else(
    workspace: Path, engine: Engine, kinds: tuple[str, ...]
) -> None:
    """Masks too are written only where they were asked for."""
    photographs(workspace / "photos", "a.jpg", "sub/b.png")
    before = below(".")
    summary = written(engine, *kinds)
    folders = {"mask": ("masks", "png"), "overlay": ("masks-overlays", "jpg"), "npy": ("masks-npy", "npy")}
    expected = {kind: [f"{name}.{folders[kind][1]}" for name in ("a", "sub/b")] for kind in kinds}
    assert {kind: below(folders[kind][0]) for kind in kinds} == expected
    assert len(below(".")) == len(before) + 2 * len(set(kinds))
    assert [place.kind for place in summary.outputs] == list(dict.fromkeys(kinds))


def test_a_mask_that_was_not_asked_for_is_not_encoded(
    workspace: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for class maps alone does not pay for pictures of them."""
    photographs(workspace / "photos", "a.png")
    monkeypatch.setattr(images, "mask_png", lambda *_: 1 / 0)
    assert written(engine, "npy").done == 1


def test_every_output_of_an_image_shows_the_same_classes(workspace: Path, engine: Engine) -> None:
    photographs(workspace / "photos", "a.png", height=90, width=150)
    written(engine, "mask", "npy")
    np.testing.assert_array_equal(np.load("masks-npy/a.npy"), indices(workspace / "masks/a.png"))
    np.testing.assert_array_equal(np.load("masks-npy/a.npy"), engine.segment(photograph(90, 150)))


# What is answered for


def test_a_bad_file_is_reported_and_the_rest_is_done(run: Run, workspace: Path) -> None:
    photographs(workspace / "photos", "a.jpg", "b.jpg", "c.jpg")
    (workspace / "photos/b.jpg").write_bytes((workspace / "photos/b.jpg").read_bytes()[:300])
    (workspace / "photos/empty.png").write_bytes(b"")
    (workspace / "photos/notes.md").write_text("")
    (workspace / "photos/folder.png").mkdir()
    done = run("infer", "photos", *ORT, "--json")
    report = done.json()
    assert done.code == 5
    assert (report["done"], report["skipped"], len(report["failed"])) == (2, 1, 2)
    assert [failure["path"] for failure in report["failed"]] == ["photos/b.jpg", "photos/empty.png"]
    assert "Truncated" in report["failed"][0]["reason"]
    assert report["failed"][1]["reason"].startswith("photos/empty.png cannot be read: ")
    assert done.err.splitlines() == [f"failed: {failure['reason']}" for failure in report["failed"]]
    assert below("masks") == ["a.png", "c.png"]


def test_images_of_other_packages_and_damaged_ones_have_their_line(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder from a telephone: what is not read is named with what is to be installed, not left out."""
    for module in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)
    photographs(workspace / "photos", "a.jpg", "b.jpg", height=480, width=640)
    (workspace / "photos/c.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (workspace / "photos/d.jxl").write_bytes(b"\xff\x0a" + bytes(20))
    whole = (workspace / "photos/b.jpg").read_bytes()
    (workspace / "photos/b.jpg").write_bytes(whole[: len(whole) // 2] + bytes(500_000))
    report = segment("photos")
    assert report.done == 1
    other = "which Pillow reads with another package"
    assert [failure.reason for failure in report.failed] == [
        "photos/b.jpg cannot be read: its end is missing, or filled with zeros.",
        f"photos/c.heic cannot be read: it is HEIC, {other} (pip install pillow-heif).",
        f"photos/d.jxl cannot be read: it is JPEG XL, {other} (pip install pillow-jxl-plugin).",
    ]


def test_the_report_has_what_the_issue_asks_for(run: Run, workspace: Path) -> None:
    photographs(workspace / "photos", "a.jpg", "b.jpg")
    done = run("infer", "photos", *ORT, "--json")
    report = done.json()
    assert (done.code, done.err) == (0, "")
    assert (report["schema"], report["done"], report["skipped"], report["failed"]) == (1, 2, 0, [])
    assert report["seconds"] > 0
    assert report["images_per_s"] == pytest.approx(2 / report["seconds"])
    assert set(report["cpu_ms_per_image"]) == {"read", "resize", "engine", "write"}
    assert all(0 < spent < 10_000 for spent in report["cpu_ms_per_image"].values())
    assert report["interrupted"] is False


def test_the_report_is_one_document_with_what_segmented_the_images(workspace: Path, engine: Engine) -> None:
    """Programs read it: the fields keep their names and their order."""
    photographs(workspace / "photos", "a.png")
    for name in ("z.png", "b.png"):
        (workspace / "photos" / name).write_bytes(b"")
    used = EngineUsed(
        model="unet",
        runtime="ort",
        device="cpu",
        precision=Precision.FP32,
        delivered=None,
        fit="stretch",
        own_fit="stretch",
        random_weights=False,
        file=Path("export/unet.fp32.onnx"),
    )
    report = written(engine, "mask", "npy").report(used, skipped=3)
    assert report.outputs == (OutputFolder("mask", Path("masks")), OutputFolder("npy", Path("masks-npy")))
    document = typed_json.to_builtins(report)
    assert " ".join(document) == (
        "schema done unchanged left skipped failed failed_before seconds images_per_s cpu_ms_per_image cores "
        "interrupted shard kept out outputs "
        "model runtime device precision delivered fit own_fit random_weights file"
    )
    assert (document["done"], document["skipped"], document["out"]) == (1, 3, "masks")
    assert [failure["path"] for failure in document["failed"]] == ["photos/b.png", "photos/z.png"]
    assert document["outputs"][1] == {"kind": "npy", "folder": "masks-npy"}
    assert (document["precision"], document["delivered"], document["file"]) == ("fp32", None, "export/unet.fp32.onnx")


def test_a_run_in_which_everything_failed_has_a_report(run: Run, workspace: Path) -> None:
    (workspace / "bad.png").write_bytes(b"")
    done = run("infer", "bad.png", *ORT, "--json")
    assert done.code == 5
    assert (done.json()["done"], done.json()["images_per_s"]) == (0, 0)
    assert done.json()["cpu_ms_per_image"] == {"read": None, "resize": None, "engine": None, "write": None}


def test_an_overlay_that_no_jpeg_can_hold_does_not_cost_the_mask(workspace: Path) -> None:
    photographs(workspace / "photos", "a.png")
    Image.fromarray(np.zeros((1, 65_501, 3), np.uint8)).save("photos/long.png")
    report = segment("photos", write=WITH_OVERLAYS)
    assert (report.done, len(report.failed)) == (1, 1)
    assert report.failed[0].path == "photos/long.png"
    assert report.failed[0].reason.startswith("photos/long.png: an overlay of 65501x1 is too long: ")
    assert below("masks") == ["a.png", "long.png"]
    assert below("masks-overlays") == ["a.jpg"]
    assert segment("photos", how=AGAIN).done == 2


def test_an_image_too_large_for_the_memory_fails_alone(
    workspace: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs(workspace / "photos", "a.png", "large.png")
    read = images.opened_photograph

    def exhausted(path: Path, *, least: tuple[int, int] | None, most: int | None) -> images.Photograph:
        if path.name == "large.png":
            raise MemoryError
        return read(path, least=least, most=most)

    monkeypatch.setattr(images, "opened_photograph", exhausted)
    summary = written(engine)
    assert summary.done == 1
    assert summary.failed == [Failure("photos/large.png", "photos/large.png is too large for the memory there is.")]


@pytest.mark.parametrize("workers", [1, 3])
def test_so_many_images_are_at_work_at_once(workspace: Path, workers: int) -> None:
    photographs(workspace / "photos", *(f"{index}.png" for index in range(12)))
    at_work, most, lock = set[int](), [0], threading.Lock()

    class Slow(NullEngine):
        def _submit(self, batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
            with lock:
                at_work.add(threading.get_ident())
                most[0] = max(most[0], len(at_work))
            time.sleep(0.05)
            with lock:
                at_work.discard(threading.get_ident())
            return super()._submit(batch)

    all_of_them, _ = sources.find(["photos"], leave_out=Path("masks"))
    with Slow(SPEC) as engine:
        summary = folder_run.run(engine, task(all_of_them, how=FolderOptions(workers=workers)), done=lambda: None)
    assert (summary.done, most[0]) == (12, workers)


@pytest.mark.parametrize("how", [{"workers": 0}, {"workers": 2, "ray": "local"}])
def test_workers_that_mean_nothing_are_refused(how: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="workers"):
        FolderOptions(**how)


def test_every_file_moves_the_bar(workspace: Path, engine: Engine) -> None:
    photographs(workspace / "photos", "a.png", "b.png", "c.png")
    (workspace / "photos/b.png").write_bytes(b"")
    moved: list[None] = []
    written(engine, done=lambda: moved.append(None))
    assert len(moved) == 3


def test_a_defect_in_a_worker_is_raised(workspace: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that dies alone would leave its images unanswered for."""
    photographs(workspace / "photos", *(f"{index}.png" for index in range(20)))
    monkeypatch.setattr(images, "mask_png", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        written(engine)


# What goes wrong


@pytest.mark.parametrize("out", ["file", "file/masks"])
def test_an_out_that_cannot_be_written_ends_the_run(run: Run, workspace: Path, out: str) -> None:
    photographs(workspace / "photos", "a.jpg", "b.jpg")
    (workspace / "file").write_text("in the way")
    refused = run("infer", "photos", *ORT, "--out", out)
    assert refused.code == (2 if out == "file" else 3)
    assert (refused.out, refused.err.count("\n")) == ("", 2)
    assert refused.err.startswith("Error: ")
    assert (workspace / "file").read_text() == "in the way"


def test_a_loop_as_out_ends_the_run(run: Run, workspace: Path) -> None:
    photographs(workspace / "photos", "a.jpg")
    (workspace / "loop").symlink_to("loop")
    refused = run("infer", "photos", *ORT, "--out", "loop")
    assert (refused.code, refused.out, refused.err.count("\n")) == (3, "", 2)


def test_a_full_disk_ends_the_run_with_whole_masks(run: Run, workspace: Path, small_disk: Path) -> None:
    links(workspace / "photos", 40, height=60, width=80)
    ended = run("infer", "photos", *ORT, "--out", small_disk / "masks")
    assert (ended.code, ended.out) == (3, "")
    what, remedy = ended.err.splitlines()
    assert what.startswith(f"Error: cannot write {small_disk}/masks/")
    assert what.endswith(": No space left on device.")
    assert remedy == "Free some space on that disk; nothing was lost, run the command again."
    masks = list((small_disk / "masks").glob("*.png"))
    assert 0 < len(masks) < 40
    assert all(indices(mask).shape == (60, 80) for mask in masks)


def test_a_disk_that_fills_up_ends_the_run(workspace: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, where no small disk can be mounted."""
    links(workspace / "photos", 40, height=60, width=80)
    write = Path.write_bytes
    left = iter(range(10))

    def filling(path: Path, data: bytes) -> int:
        if next(left, None) is None:
            write(path, data[:20])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", filling)
    with pytest.raises(InvalidFileError, match="No space left on device"):
        written(engine)
    masks = list(Path("masks").glob("*.png"))
    assert len(masks) == 10
    assert all(indices(mask).shape == (60, 80) for mask in masks)


def test_ctrl_c_leaves_whole_masks_and_a_report(workspace: Path) -> None:
    links(workspace / "photos", MANY, height=1200, width=1600)
    code, out, err = cut_off(signal.SIGINT, after=5)
    report = json.loads(out)
    assert code == 130
    assert err.splitlines()[-1] == "Interrupted; what was finished is kept."
    assert "Traceback" not in err
    assert report["interrupted"] is True
    assert 5 <= report["done"] < MANY
    assert len(below("masks")) == report["done"]
    assert all(indices(Path("masks", name)).shape == (1200, 1600) for name in below("masks"))


def test_ctrl_c_at_any_moment_stops_the_workers(
    workspace: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that go on without their caller would keep the program from ending."""
    links(workspace / "photos", MANY, height=60, width=80)
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        started.append(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    try:
        summary = written(engine)
    except KeyboardInterrupt:
        pytest.fail("the run left its workers alone")
    assert summary.interrupted
    assert summary.done < MANY
    assert [thread.is_alive() for thread in started] == [False]


def test_a_killed_run_leaves_no_half_mask_under_a_name(run: Run, workspace: Path) -> None:
    """What was being written is hidden, and no image; the next run removes it."""
    links(workspace / "photos", MANY, height=1200, width=1600)
    code, out, _ = cut_off(signal.SIGKILL, after=5)
    assert (code, out) == (-signal.SIGKILL, "")
    named = [name for name in below("masks") if not name.startswith(".")]
    assert 5 <= len(named) < MANY
    assert all(indices(Path("masks", name)).shape == (1200, 1600) for name in named)
    with pytest.raises(InvalidRequestError, match="nothing but masks and overlays of segdeploy"):
        found("masks", out="elsewhere")
    assert run("infer", "photos/0000.jpg", *ORT).code == 0
    assert below("masks") == sorted({*named, "0000.png"})


# Real images


@pytest.mark.usefixtures("workspace")
def test_every_odd_image_is_answered_for(run: Run, segdeploy_data: Path) -> None:
    done = run("infer", segdeploy_data / "odd_images", *ORT, "--json")
    report = done.json()
    assert done.code == 5
    assert report["done"] + len(report["failed"]) + report["skipped"] == 46
    assert report["skipped"] <= 2
    assert len(below("masks")) == report["done"] > 30


@pytest.mark.slow
@pytest.mark.usefixtures("workspace")
def test_every_camera_photograph_is_done(run: Run, segdeploy_data: Path) -> None:
    done = run("infer", segdeploy_data / "photos", *ORT, "--overlay", "--json")
    report = done.json()
    assert (done.code, report["done"], report["skipped"], report["failed"]) == (0, 13, 0, [])
    for photo in (segdeploy_data / "photos").iterdir():
        assert indices(Path("masks", f"{photo.stem}.png")).shape == images.read(photo).shape[:2]


def grown_mb(folder: Path) -> float:
    """Peak memory above the loaded engine, the median of three processes."""
    return statistics.median(
        float(subprocess.run([sys.executable, "-c", MEMORY, folder], check=True, capture_output=True).stdout)
        for _ in range(3)
    )


def linked(folder: Path, files: Sequence[Path]) -> Path:
    folder.mkdir()
    for file in files:
        (folder / file.name).symlink_to(file)
    return folder


def pixels(path: Path) -> int:
    with Image.open(path) as image:
        return image.width * image.height


@pytest.mark.slow
def test_memory_does_not_grow_with_the_folder(workspace: Path, segdeploy_data: Path) -> None:
    every = sorted((segdeploy_data / "nuclei/images").iterdir())
    assert len(every) == 580
    largest = max(every, key=pixels)
    some = [largest, *[image for image in every[::10] if image != largest][:57]]
    assert len(some) == 58
    few, many = (grown_mb(linked(workspace / name, files)) for name, files in (("few", some), ("many", every)))
    assert many <= max(LARGEST_GROWTH * few, few + GROWTH_MB), f"{few:.0f} MB for 58 images, {many:.0f} MB for 580"
