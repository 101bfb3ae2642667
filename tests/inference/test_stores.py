"""From store to store: the tree that files would be, goes on after kills, and belongs to one run at a time.

The store is moto's server on loopback, whose protocol is S3's; `memory://` where one process is enough.
"""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import COMMAND, Run, known, photographs
from inference_folders import ORT, below, segment
from PIL import Image

from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.inference import store_lock, stores
from segdeploy.inference.options import FolderOptions
from segdeploy.inference.report import Report
from segdeploy.inference.stores import Prefix, TakenError

pytest.importorskip("obstore", reason="obstore is not installed")
pytest.importorskip("moto.server", reason="moto's server is not installed")
MANY, KILLS = 40, 4
SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a server of S3's protocol, which this process and its commands use."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        url = f"http://127.0.0.1:{int(known(process.stdout).readline())}"
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "REGION": "us-east-1"}.items():
                patch.setenv(f"AWS_{name}", value)
            patch.setenv("AWS_ENDPOINT_URL", url)
            patch.setenv("AWS_ALLOW_HTTP", "true")
            yield url
        known(process.stdin).close()


@pytest.fixture(params=["s3", "memory"])
def bucket(request: pytest.FixtureRequest) -> str:
    return made_bucket(request) if request.param == "s3" else f"memory://m{abs(hash(request.node.nodeid)):x}"


@pytest.fixture
def s3(request: pytest.FixtureRequest) -> str:
    return made_bucket(request)


def made_bucket(request: pytest.FixtureRequest) -> str:
    import urllib.request

    name = f"b{abs(hash(request.node.nodeid)):x}"
    asked = urllib.request.Request(f"{request.getfixturevalue('server')}/{name}", method="PUT")  # noqa: S310 - loopback
    with urllib.request.urlopen(asked):  # noqa: S310 - loopback
        return f"s3://{name}"


def uploaded(folder: Path, url: str) -> None:
    where = stores.prefix(url)
    for path in folder.rglob("*"):
        if path.is_file():
            where.write(str(path.relative_to(folder)), path.read_bytes())


def objects(url: str) -> dict[str, bytes]:
    """Every object but the journal and the reports."""
    where = stores.prefix(url)
    return {name: where.read(name)[0] for name, _ in where.listed() if ".segdeploy" not in name}


def tree(folder: str) -> dict[str, bytes]:
    return {name: Path(folder, name).read_bytes() for name in below(folder)}


def counts(report: Report | Any) -> tuple[int, int, int, int]:  # noqa: ANN401 - or as JSON
    return report.done, report.unchanged, len(report.failed), len(report.failed_before)


@pytest.fixture
def few(workspace: Path, bucket: str) -> str:
    photographs(workspace / "photos", "a.jpg", "b.png", "sub/c.jpg", "sub/d é%#+.png")
    (workspace / "photos/bad.png").write_bytes(b"no image")
    (workspace / "photos/notes.md").write_text("")
    (workspace / "photos/.hidden.png").write_text("")
    uploaded(workspace / "photos", f"{bucket}/photos")
    return bucket


# The tree


def test_what_a_store_holds_is_what_files_would_be(few: str) -> None:
    kinds = ("mask", "overlay", "npy")
    one = segment("photos", write=kinds)
    two = segment(f"{few}/photos", out=f"{few}/masks", write=kinds)
    for suffix in ("", "-overlays", "-npy"):
        assert objects(f"{few}/masks{suffix}") == tree(f"masks{suffix}")
        assert len(tree(f"masks{suffix}")) == 4
    assert counts(one) == counts(two) == (4, 0, 1, 0)
    assert one.skipped == two.skipped
    url = f"{few}/photos/bad.png"
    assert (two.failed[0].path, two.failed[0].reason) == (url, one.failed[0].reason.replace("photos/bad.png", url))
    assert (two.out, two.kept) == (f"{few}/masks", f"{few}/masks/.segdeploy")
    assert [each.folder for each in two.outputs] == [f"{few}/masks{suffix}" for suffix in ("", "-overlays", "-npy")]


def test_the_reports_lie_beside_the_journal_and_name_urls(few: str) -> None:
    report = segment(f"{few}/photos", out=f"{few}/masks")
    where = stores.prefix(f"{few}/masks/.segdeploy")
    assert sorted(name for name, _ in where.listed()) == [
        *("areas.csv", "contact.html", "failed.jsonl"),
        "journal/00000001.jsonl",
        "summary.json",
    ]
    assert where.read("areas.csv")[0].decode().splitlines()[1].startswith(f"{few}/photos/a.jpg,4800,")
    assert json.loads(where.read("failed.jsonl")[0])["path"] == f"{few}/photos/bad.png"
    summary = json.loads(where.read("summary.json")[0])
    assert (summary["out"], summary["done"]) == (report.out, 4)
    lines = [json.loads(line) for line in where.read("journal/00000001.jsonl")[0].splitlines()]
    named = {"a.jpg", "b.png", "bad.png", "sub/c.jpg", "sub/d é%#+.png"}
    assert {line["source"] for line in lines} == {f"{few}/photos/{name}" for name in named}
    for name, _ in where.listed():
        assert b"/segdeploy-" not in where.read(name)[0]


def test_an_image_alone_and_names_in_the_way(few: str) -> None:
    report = segment(f"{few}/photos/a.jpg", f"{few}/photos/sub", out=f"{few}/masks")
    assert counts(report) == (3, 0, 0, 0)
    assert sorted(objects(f"{few}/masks")) == ["a.png", "c.png", "d é%#+.png"]


# What is not done again


def test_a_second_run_takes_inputs_for_unchanged_by_their_etag(few: str, monkeypatch: pytest.MonkeyPatch) -> None:
    segment(f"{few}/photos", out=f"{few}/masks")
    with monkeypatch.context() as patch:
        read = Prefix.read
        patch.setattr(Prefix, "read", lambda where, name: read(where, name) if "masks" in where.url else 1 / 0)
        assert counts(segment(f"{few}/photos", out=f"{few}/masks")) == (0, 4, 0, 1)
    assert counts(segment(f"{few}/photos", out=f"{few}/masks", how=FolderOptions(dry_run=True))) == (0, 4, 0, 1)


@pytest.mark.parametrize("change", ["input", "output", "gone"])
def test_what_changed_is_done_again(few: str, change: str) -> None:
    segment(f"{few}/photos", out=f"{few}/masks")
    photos, masks = stores.prefix(f"{few}/photos"), stores.prefix(f"{few}/masks")
    before = objects(f"{few}/masks")
    if change == "input":
        photos.write("a.jpg", photos.read("b.png")[0])
    elif change == "output":
        masks.write("a.png", b"altered")
    else:
        masks.remove("a.png")
    assert counts(segment(f"{few}/photos", out=f"{few}/masks")) == (1, 3, 0, 1)
    assert counts(segment(f"{few}/photos", out=f"{few}/masks")) == (0, 4, 0, 1)
    after = objects(f"{few}/masks")
    assert (after == before) is (change != "input")


def test_an_output_that_is_added_makes_only_what_is_missing(few: str) -> None:
    segment(f"{few}/photos", out=f"{few}/masks")
    masks = stores.prefix(f"{few}/masks")
    before = masks.version("a.png")
    assert counts(segment(f"{few}/photos", out=f"{few}/masks", write=("mask", "npy"))) == (4, 0, 0, 1)
    assert masks.version("a.png") == before
    assert len(objects(f"{few}/masks-npy")) == 4
    assert counts(segment(f"{few}/photos", out=f"{few}/masks", write=("mask", "npy"))) == (0, 4, 0, 1)
    assert counts(segment(f"{few}/photos", out=f"{few}/masks", how=FolderOptions(again=True))) == (4, 0, 1, 0)


def test_shards_write_the_tree_of_one_run(few: str) -> None:
    segment("photos")
    done = [segment(f"{few}/photos", out=f"{few}/masks", how=FolderOptions(shard=f"{index}/3")) for index in (1, 2, 3)]
    assert sum(report.done for report in done) == 4
    assert objects(f"{few}/masks") == tree("masks")
    assert counts(segment(f"{few}/photos", out=f"{few}/masks")) == (0, 4, 0, 1)


# What is not replaced


def test_a_picture_that_segdeploy_did_not_write_stays(few: str) -> None:
    masks = stores.prefix(f"{few}/masks")
    file = io.BytesIO()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(file, "PNG")
    masks.write("a.png", file.getvalue())
    report = segment(f"{few}/photos", out=f"{few}/masks")
    assert counts(report) == (3, 0, 2, 0)
    assert report.failed[0].reason == f"{few}/masks/a.png is there, and segdeploy did not write it."
    assert masks.read("a.png")[0] == file.getvalue()


def test_a_mask_that_would_replace_a_photograph_ends_the_run(few: str) -> None:
    before = objects(f"{few}/photos")
    with pytest.raises(InvalidRequestError, match="is a photograph to read; its mask would replace it"):
        segment(f"{few}/photos/b.png", out=f"{few}/photos")
    assert objects(f"{few}/photos") == before


def test_masks_are_no_photographs(few: str) -> None:
    """Below --out they are left out; elsewhere each is refused once it was read."""
    segment(f"{few}/photos", out=f"{few}/photos/masks")
    assert counts(segment(f"{few}/photos", out=f"{few}/photos/masks")) == (0, 4, 0, 1)
    report = segment(f"{few}/photos/masks/a.png", out=f"{few}/elsewhere")
    assert report.failed[0].reason.endswith("is a mask or an overlay that segdeploy wrote: name the photographs.")


# One run at a time


def test_a_run_beside_one_that_lives_is_refused(few: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_lock, "RENEWED_S", 0.2)
    masks = stores.prefix(f"{few}/masks")
    with store_lock.held(masks, ".segdeploy/lock", conflicting=[]):
        for shard in (None, "1/2"):
            with pytest.raises(InvalidRequestError, match=r"another run writes into .*/masks: process \d+ on "):
                segment(f"{few}/photos", out=f"{few}/masks", how=FolderOptions(shard=shard))
    with (
        store_lock.held(masks, ".segdeploy/2-of-2/lock", conflicting=[]),
        pytest.raises(InvalidRequestError, match="another run writes into"),
    ):
        segment(f"{few}/photos", out=f"{few}/masks")
    assert counts(segment(f"{few}/photos", out=f"{few}/masks")) == (4, 0, 1, 0)


def test_a_run_on_another_machine_lives_while_it_renews_its_lock(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can ask for its process; clocks of machines differ, so the lock is watched."""
    monkeypatch.setattr(store_lock, "STALE_S", 3.0)
    monkeypatch.setattr(store_lock, "RENEWED_S", 0.2)
    monkeypatch.setattr(store_lock, "_owner", lambda: json.dumps(["another", 1, "now", time.time_ns()]).encode())
    masks = stores.prefix(f"{bucket}/masks")
    with (
        store_lock.held(masks, "lock", conflicting=[]),
        pytest.raises(InvalidRequestError, match="process 1 on another, since now"),
        store_lock.held(masks, "lock", conflicting=[]),
    ):
        pytest.fail("two hold it")
    assert masks.version("lock") is None


def test_a_lock_that_is_not_renewed_is_taken_over(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the run that was away, and comes back, ends."""
    monkeypatch.setattr(store_lock, "STALE_S", 1.0)
    masks = stores.prefix(f"{bucket}/masks")
    monkeypatch.setattr(store_lock, "RENEWED_S", 3.0)
    with monkeypatch.context() as patch:
        patch.setattr(store_lock, "_owner", lambda: json.dumps(["another", 1, "now", time.time_ns()]).encode())
        held = store_lock.held(masks, "lock", conflicting=[])
        away = held.__enter__()
    with store_lock.held(masks, "lock", conflicting=[]):
        for _ in range(100):
            time.sleep(0.05)
            try:
                away.require()
            except InvalidRequestError as error:
                assert "another run took over" in error.what  # noqa: PT017 - at some time
                break
        else:
            pytest.fail("two hold it")
        held.__exit__(None, None, None)
        assert masks.version("lock") is not None
    assert masks.version("lock") is None


def test_writes_on_condition_hold(bucket: str) -> None:
    """What the lock and the journal stand on."""
    where = stores.prefix(f"{bucket}/some")
    first = where.write("x", b"1", where="none")
    with pytest.raises(TakenError):
        where.write("x", b"2", where="none")
    second = where.write("x", b"3", where=first)
    with pytest.raises(TakenError):
        where.write("x", b"4", where=first)
    assert where.read("x") == (b"3", second)
    where.remove("x")
    with pytest.raises(TakenError):
        where.write("x", b"5", where=second)


# Kills


def interrupted(s3: str, number: int, after: int) -> tuple[int, str]:
    masks = stores.prefix(f"{s3}/masks")
    with subprocess.Popen(
        [COMMAND, "infer", f"{s3}/photos", *ORT, "--out", f"{s3}/masks", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while sum(name.endswith(".png") for name, _ in masks.listed()) < after:
            assert process.poll() is None, known(process.stderr).read()
            time.sleep(0.02)
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    return process.returncode, out


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(run: Run, workspace: Path, s3: str) -> None:
    """Whichever machine goes on: what is known is in the store."""
    photographs(workspace / "photos", *(f"{index % 3}/{index:03}.jpg" for index in range(MANY)), height=900, width=1200)
    (workspace / "photos/bad.png").write_bytes(b"no image")
    uploaded(workspace / "photos", f"{s3}/photos")
    segment("photos")
    for kill in range(1, KILLS + 1):
        assert interrupted(s3, signal.SIGKILL, after=MANY * kill // (KILLS + 2)) == (-signal.SIGKILL, "")
        assert set(objects(f"{s3}/masks").items()) <= set(tree("masks").items())
    last = run("infer", f"{s3}/photos", *ORT, "--out", f"{s3}/masks", "--json")
    report = last.json()
    assert (last.code, report["done"] + report["unchanged"]) == (5, MANY)
    assert objects(f"{s3}/masks") == tree("masks")
    again = run("infer", f"{s3}/photos", *ORT, "--out", f"{s3}/masks", "--json").json()
    assert (again["done"], again["unchanged"], len(again["failed_before"])) == (0, MANY, 1)


@pytest.mark.slow
def test_ctrl_c_commits_what_was_done(run: Run, workspace: Path, s3: str) -> None:
    photographs(workspace / "photos", *(f"{index:03}.jpg" for index in range(MANY)), height=900, width=1200)
    uploaded(workspace / "photos", f"{s3}/photos")
    code, out = interrupted(s3, signal.SIGINT, after=5)
    done = json.loads(out)["done"]
    assert (code, json.loads(out)["interrupted"]) == (130, True)
    assert 5 <= done < MANY
    report = run("infer", f"{s3}/photos", *ORT, "--out", f"{s3}/masks", "--json").json()
    assert (report["done"], report["unchanged"]) == (MANY - done, done)


# What is refused


@pytest.mark.parametrize(
    "inputs,out,how,expected",
    [
        ("photos", "{}/masks", {}, "photos is no URL of a store, and another one is"),
        ("{}/photos", "masks", {}, "masks is no URL of a store, and another one is"),
        ("{}/photos", "{}/masks", {"ray": "local"}, "Ray's actors share files, not stores"),
        ("{}/photos", "{}/masks", {"verify": True}, "--verify reads files"),
        ("{}/none", "{}/masks", {}, "there are no images in "),
        ("{}/photos", "s3://", {}, "'s3://' is no URL of a store"),
    ],
)
def test_what_cannot_be_is_said(few: str, inputs: str, out: str, how: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidRequestError, match=expected):
        segment(inputs.format(few), out=out.format(few), how=FolderOptions(**how))
    assert objects(f"{few}/masks") == {}


@pytest.mark.usefixtures("workspace")
def test_a_bucket_that_is_not_there_ends_the_run(server: str) -> None:
    assert server
    with pytest.raises(InvalidFileError, match="cannot reach s3://no-such-bucket"):
        segment("s3://no-such-bucket/photos", out="s3://no-such-bucket/masks")


def test_a_name_that_no_file_can_have_is_said(few: str) -> None:
    stores.prefix(f"{few}/photos").write("x" * 300 + ".png", b"")
    with pytest.raises(InvalidRequestError, match="has a name that no file can have"):
        segment(f"{few}/photos", out=f"{few}/masks")
    assert counts(segment(f"{few}/photos", out=f"{few}/masks", how=FolderOptions(exclude=("xxx*",)))) == (4, 0, 1, 0)


def test_nothing_is_left_on_this_machine(few: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    segment(f"{few}/photos", out=f"{few}/masks")
    assert os.listdir(tmp_path / "temporary") == []  # noqa: PTH208 - names
