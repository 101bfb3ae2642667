"""A mask is called after its image alone; a name that two images would have costs the later one, not the run."""

from pathlib import Path, PurePath

import numpy as np
import pytest
from conftest import Run, photographs
from hypothesis import given
from hypothesis import strategies as st
from inference_folders import ORT, WITH_OVERLAYS, below, indices, segment, written

from segdeploy import api
from segdeploy.engines import Engine
from segdeploy.errors import InvalidRequestError
from segdeploy.inference import naming
from segdeploy.inference.naming import Place
from segdeploy.inference.source_list import Source, SourceList

MASKS, OVERLAYS = Place(Path("masks"), ".png"), Place(Path("masks-overlays"), ".jpg")
STEPS = st.sampled_from(["a", "b", "a.png", "a.jpg", "b.jpg.png"])
PATHS = st.lists(STEPS, min_size=1, max_size=3).map("/".join).map(lambda path: f"{path}.jpg")


@pytest.mark.parametrize("beside", [(), ("a/x.png",), ("a/x.webp", "a/x.tif", "b/x.jpg"), ("a/x.jpg.jpg",)])
def test_the_name_of_a_mask_does_not_depend_on_its_neighbours(workspace: Path, beside: tuple[str, ...]) -> None:
    photographs(workspace / "photos", "a/x.jpg", *beside)
    segment("photos/a/x.jpg", *(f"photos/{name}" for name in beside), out="one")
    assert "x.png" in below("one")
    segment("photos")
    assert "a/x.png" in below("masks")


def test_of_two_images_of_one_name_the_first_is_done(run: Run, workspace: Path) -> None:
    photographs(workspace / "photos", "a/x.jpg", "a/x.png", "a/x.tif", "b.jpg")
    done = run("infer", "photos", *ORT, "--overlay", "--json")
    report = done.json()
    assert (done.code, report["done"], report["skipped"]) == (5, 2, 0)
    assert [failure["path"] for failure in report["failed"]] == ["photos/a/x.png", "photos/a/x.tif"]
    assert done.err.splitlines() == [
        f"failed: photos/a/x.{kind} would take the name masks/a/x.png from photos/a/x.jpg: "
        f"--names full gives each its own, such as masks/a/x.{kind}.png."
        for kind in ("png", "tif")
    ]
    assert below("masks") == ["a/x.png", "b.png"]
    assert below("masks-overlays") == ["a/x.jpg", "b.jpg"]
    segment("photos/a/x.jpg", out="alone")
    assert np.array_equal(indices(workspace / "masks/a/x.png"), indices(workspace / "alone/x.png"))


def test_with_full_names_all_are_done(run: Run, workspace: Path) -> None:
    photographs(workspace / "photos", "a/x.jpg", "a/x.png", "b.jpg", "c.jpg", "c.png/d.jpg")
    done = run("infer", "photos", *ORT, "--overlay", "--names", "full")
    assert (done.code, done.err) == (0, "")
    assert below("masks") == ["a/x.jpg.png", "a/x.png.png", "b.jpg.png", "c.jpg.png", "c.png/d.jpg.png"]
    assert below("masks-overlays") == ["a/x.jpg.jpg", "a/x.png.jpg", "b.jpg.jpg", "c.jpg.jpg", "c.png/d.jpg.jpg"]
    assert not np.array_equal(indices(workspace / "masks/a/x.jpg.png"), indices(workspace / "masks/a/x.png.png"))


@pytest.mark.parametrize(
    "inputs,failed,name,other",
    [
        (("a.jpg", "a.png/b.jpg"), "a.png/b.jpg", "masks/a.png", "a.jpg"),
        (("a.png/b.jpg", "a.jpg"), "a.jpg", "masks/a.png", "a.png/b.jpg"),
        (("a.jpg", "a.png/deep/b.jpg"), "a.png/deep/b.jpg", "masks/a.png", "a.jpg"),
    ],
)
def test_a_file_and_a_folder_of_one_name_cost_one_line(
    workspace: Path, inputs: tuple[str, ...], failed: str, name: str, other: str
) -> None:
    photographs(workspace / "photos", *inputs, "z.jpg")
    (workspace / "list.txt").write_text("\n".join(f"photos/{each}" for each in (*inputs, "z.jpg")))
    report = segment("list.txt")
    assert report.done == 2
    (failure,) = report.failed
    assert failure.path == str(workspace / "photos" / failed)
    assert f"would take the name {name} from {workspace / 'photos' / other}: --names full gives" in failure.reason
    assert len(below("masks")) == 2


def test_images_of_two_folders_need_two_runs(workspace: Path) -> None:
    photographs(workspace, "one/a.jpg", "two/a.jpg", "two/b.jpg")
    for names in ("stem", "full"):
        report = api.infer(["one", "two"], model="unet", engine="ort:fp32", out=names, names=names)
        assert report.done == 2
        assert [failure.path for failure in report.failed] == ["two/a.jpg"]
        assert report.failed[0].reason.endswith("from one/a.jpg: give it a run of its own, with another --out.")


@pytest.mark.parametrize("in_the_way", ["masks/a.png/x", "masks/sub"])
def test_what_an_earlier_run_left_in_the_way_costs_one_line(workspace: Path, in_the_way: str) -> None:
    """A folder where a mask goes, and a file where a folder goes."""
    photographs(workspace / "photos", "a.jpg", "sub/b.jpg", "z.jpg")
    (workspace / in_the_way).parent.mkdir(parents=True)
    (workspace / in_the_way).write_text("theirs")
    report = segment("photos")
    failed = "photos/a.jpg" if "a.png" in in_the_way else "photos/sub/b.jpg"
    assert [(report.done, failure.path) for failure in report.failed] == [(2, failed)]
    assert report.failed[0].reason.startswith(f"{failed}: cannot write masks/")
    assert (workspace / in_the_way).read_text() == "theirs"


@pytest.mark.parametrize("length,done", [(247, 2), (248, 1)])
def test_a_name_that_is_too_long_costs_its_file_alone(workspace: Path, length: int, done: int) -> None:
    """255 bytes; `.jpg.png` makes a name longer than its image's."""
    name = f"{'n' * length}.jpg"
    photographs(workspace / "photos", "a.jpg", name)
    report = api.infer("photos", model="unet", engine="ort:fp32", names="full")
    assert report.done == done
    expected = [f"photos/{name}: cannot write masks/{name}.png: File name too long."] if done == 1 else []
    assert [failure.reason for failure in report.failed] == expected


def test_an_overlay_whose_path_is_too_long_does_not_cost_the_mask(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`masks-overlays/` is longer than `masks/`; a path has 4,095 bytes at most."""
    target = f"{'/'.join(['d' * 200] * 20)}/{'n' * 60}"
    for step in PurePath("photos", target).parent.parts:
        Path(step).mkdir()
        monkeypatch.chdir(step)
    photographs(Path(), f"{'n' * 60}.jpg")
    monkeypatch.chdir(workspace)
    report = segment("photos", write=WITH_OVERLAYS)
    assert below("masks") == [f"{target}.png"]
    assert [failure.reason for failure in report.failed] == [
        f"photos/{target}.jpg: cannot write masks-overlays/{target}.jpg: File name too long."
    ]
    assert below("masks-overlays") == []


@pytest.mark.parametrize("names", ["", "Full", "short", "../full"])
def test_unknown_names_are_refused(workspace: Path, names: str) -> None:
    photographs(workspace / "photos", "a.jpg")
    with pytest.raises(InvalidRequestError, match="there are no names"):
        api.infer("photos", model="unet", engine="ort:fp32", names=names)
    assert not (workspace / "masks").exists()


def test_an_image_that_comes_too_late_moves_the_bar(workspace: Path, engine: Engine) -> None:
    photographs(workspace / "photos", "a.jpg", "a.png", "b.jpg")
    moved: list[None] = []
    summary = written(engine, done=lambda: moved.append(None))
    assert (len(moved), summary.done, len(summary.failed)) == (3, 2, 1)


@given(paths=st.lists(PATHS, unique=True, max_size=8), names=st.sampled_from(["stem", "full"]))
def test_no_two_images_are_given_one_name(paths: list[str], names: str) -> None:
    """Whatever their order: each is done or fails, nothing is written twice, no file lies where a folder does."""
    sources = [Source("photos", path) for path in paths]
    kept, too_late = naming.divided(SourceList(sources), [MASKS, OVERLAYS], names)
    assert sorted([str(source.path) for source in kept] + [each.failure.path for each in too_late]) == sorted(
        str(source.path) for source in sources
    )
    files = [place.file(naming.target(source, names)) for source in kept for place in (MASKS, OVERLAYS)]
    assert len(set(files)) == len(files)
    assert not set(files) & {parent for file in files for parent in file.parents}
    for source in kept:
        assert naming.target(source, names) == PurePath(
            source.relative if names == "full" else source.relative.removesuffix(".jpg")
        )
    for failure in (each.failure for each in too_late):
        assert "\n" not in failure.reason
        assert failure.path in failure.reason
    if sources:
        assert kept[0] == sources[0]
