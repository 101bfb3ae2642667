"""Ray's actors write the tree that one process writes, whatever of them is killed; the journal is the driver's."""

import dataclasses
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray_engines
from conftest import COMMAND, Run, known, photographs
from inference_folders import ORT, below, segment, task
from PIL import Image

from segdeploy.engines import Engine
from segdeploy.errors import GateFailedError, InvalidRequestError, MissingRuntimeError
from segdeploy.inference import actor, ray_cluster, run, sources
from segdeploy.inference.actor import Actor, Ready, Start
from segdeploy.inference.options import FOLDER, FolderOptions
from segdeploy.inference.ray_cluster import Size
from segdeploy.inference.ray_job import RayJob
from segdeploy.inference.report import Report, Summary
from segdeploy.inference.source_list import SourceList

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
ray = pytest.importorskip("ray", reason="ray is not installed")  # reads them
pytestmark = pytest.mark.xdist_group("ray")  # one Ray at a time: each takes a second, and hundreds of megabytes
MANY, KILLS = 40, 2
CLUSTER = """
import sys, ray
ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, configure_logging=False, log_to_driver=False)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
ray.shutdown()
"""
HERE = [str(Path(__file__).parent)]  # where workers find ray_engines
TWO = Size(actors=2, cpus=1, gpus=0)
LOCAL = ("--ray", "local", "--ray-actors", "2")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A Ray with two cores, to which this process is connected too; its workers stand in another folder."""
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*HERE, os.environ.get("PYTHONPATH", "")])},
    ) as process:
        address = known(process.stdout).readline().strip()
        with ray_cluster.connected(address, actors=None):
            yield address
        known(process.stdin).close()


@pytest.fixture
def many(workspace: Path) -> Path:
    names = [f"{index % 3}/{index:03}.jpg" for index in range(MANY)]
    photographs(workspace / "photos", *names, height=1200, width=1600)
    (workspace / "photos/bad.png").write_bytes(b"no image")
    return workspace


@pytest.fixture
def few(workspace: Path) -> Path:
    photographs(workspace / "photos", "a.jpg", "b.png", "sub/c.jpg", "sub/d.png")
    (workspace / "photos/bad.png").write_bytes(b"no image")
    return workspace


def tree(folder: str) -> dict[str, bytes]:
    return {name: Path(folder, name).read_bytes() for name in below(folder)}


def actors_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "ray::Actor" in " ".join(child.cmdline())]


def disturbed(*arguments: str, out: str, after: int, disturb: Callable[[Any], None]) -> tuple[int, str, str]:
    """`infer photos` with Ray, in a session and a home of its own, disturbed once there are so many masks."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command: list[str | Path] = [COMMAND, "infer", "photos", *ORT, *LOCAL, "--out", out, "--json", *arguments]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=own | {"HOME": str(Path("home").absolute())},
    ) as process:
        while len(list(Path(out).rglob("*.png"))) < after:
            assert process.poll() is None
            time.sleep(0.01)
        disturb(process)
        said = process.communicate(timeout=120)
    assert not Path("home").exists()
    return process.returncode, *said


# One process, three shards, two actors: one tree


@pytest.mark.slow
@pytest.mark.usefixtures("many")
def test_one_process_three_shards_and_two_actors_of_which_one_is_killed_write_one_tree(run: Run) -> None:
    segment("photos", out="one")
    for shard in ("1/3", "2/3", "3/3"):
        segment("photos", out="three", how=FolderOptions(shard=shard))

    def kill_one(process: Any) -> None:  # noqa: ANN401 - a process
        actors_of(process)[0].kill()

    code, said, err = disturbed(out="two", after=MANY // 4, disturb=kill_one)
    assert tree("one") == tree("three") == tree("two")
    assert len(tree("two")) == MANY
    report = json.loads(said)
    assert (code, report["done"], [each["path"] for each in report["failed"]]) == (5, MANY, ["photos/bad.png"])
    assert "ended; " in err
    assert len(Path("two/.segdeploy/journal.jsonl").read_text().splitlines()) == MANY + 1
    again = run("infer", "photos", *ORT, "--out", "two", "--json").json()
    assert (again["done"], again["unchanged"], len(again["failed_before"])) == (0, MANY, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("many")
def test_a_run_that_is_killed_goes_on(run: Run) -> None:
    """`kill -9` of the driver, with all that it started; the next run does what its journal has not."""
    segment("photos", out="one")

    def kill(process: Any) -> None:  # noqa: ANN401 - a process
        started = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        _, alive = psutil.wait_procs(started, timeout=5)
        assert not any("ray::Actor" in " ".join(each.cmdline()) for each in alive)
        for each in alive:  # Ray's agents
            each.kill()

    for kills in range(KILLS):
        code, said, _ = disturbed(out="two", after=MANY * (kills + 1) // 4, disturb=kill)
        assert (code, said) == (-signal.SIGKILL, "")
    last = run("infer", "photos", *ORT, *LOCAL, "--out", "two", "--json")
    report = last.json()
    assert (last.code, report["done"] + report["unchanged"]) == (5, MANY)
    assert report["unchanged"] >= MANY // 2 - 2 * 2 * KILLS  # what two actors had, and waited for them
    assert tree("two") == tree("one")
    assert below("two/.segdeploy") == below("one/.segdeploy")


@pytest.mark.slow
@pytest.mark.usefixtures("many")
def test_ctrl_c_ends_every_actor() -> None:
    ended: list[psutil.Process] = []

    def interrupt(process: Any) -> None:  # noqa: ANN401 - a process
        ended.extend(psutil.Process(process.pid).children(recursive=True))
        os.killpg(process.pid, signal.SIGINT)

    code, said, err = disturbed(out="two", after=5, disturb=interrupt)
    report = json.loads(said)
    assert (code, report["interrupted"]) == (130, True)
    assert err.splitlines()[-1] == "Interrupted; what was finished is kept."
    assert 5 <= report["done"] < MANY
    assert len(below("two")) == report["done"]
    assert len(ended) > 2
    _, alive = psutil.wait_procs(ended, timeout=20)
    assert alive == []


@pytest.mark.usefixtures("few")
def test_a_cluster_by_its_address_says_what_one_process_says(run: Run, address: str) -> None:
    """The workers stand elsewhere; the paths of the command are still relative to its own folder."""
    kinds = ("--write", "mask,npy,overlay")
    one = run("infer", "photos", *ORT, *kinds, "--out", "one", "--json")
    two = run("infer", "photos", *ORT, *kinds, "--out", "two", "--json", "--ray", address)
    assert (one.code, two.code, two.err) == (5, 5, one.err)
    for folder in ("", "-npy", "-overlays"):
        assert tree(f"one{folder}") == tree(f"two{folder}")
        assert len(tree(f"two{folder}")) == 4
    differing = {"seconds", "images_per_s", "cpu_ms_per_image", "kept", "out", "outputs"}
    assert _without(one.json(), differing) == _without(two.json(), differing)
    assert Path("one/.segdeploy/areas.csv").read_bytes() == Path("two/.segdeploy/areas.csv").read_bytes()
    pictures = [Path(out, ".segdeploy/contact.html").read_text().count("<figure>") for out in ("one", "two")]
    assert pictures[0] == pictures[1] > 0


def _without(report: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in report.items() if name not in names}


# The same journal, limits and failures; `address`: the Ray of this process is used


def counts(report: Report | Summary) -> tuple[int, int, int, int, int]:
    return report.done, report.unchanged, report.left, len(report.failed), len(report.failed_before)


@pytest.mark.usefixtures("few", "address")
def test_the_journal_is_the_same_for_actors_and_for_one_process() -> None:
    with_ray = FolderOptions(ray="local")
    assert counts(segment("photos", how=FolderOptions(ray="local", limit=2))) == (2, 0, 3, 0, 0)
    assert counts(segment("photos", how=FolderOptions(limit=1))) == (1, 2, 1, 1, 0)
    assert counts(segment("photos", how=with_ray)) == (1, 3, 0, 0, 1)
    assert counts(segment("photos", how=with_ray)) == (0, 4, 0, 0, 1)
    assert counts(segment("photos", how=FolderOptions(ray="local", retry_failed=True, again=True))) == (4, 0, 0, 1, 0)
    assert not list(Path("masks/.segdeploy").glob("ray*"))


@pytest.mark.usefixtures("few", "address")
def test_fail_fast_stops_actors_too() -> None:
    photographs(Path("photos"), *(f"z/{index}.png" for index in range(30)))
    report = segment("photos", how=FolderOptions(ray="local", fail_fast=True))
    assert len(report.failed) == 1
    assert report.left > 20


def made(opened: Callable[[], Engine], how: FolderOptions = FOLDER, size: Size = TWO) -> Summary:
    """What actors with such engines make of photos."""
    images, _ = sources.find(["photos"], leave_out=Path("masks"))
    wanted = task(images, how=how)

    def job(work: Any, resuming: Any) -> RayJob:  # noqa: ANN401 - what `carried_out` gives
        return RayJob(opened, size, ray_engines.SPEC, work=work, resuming=resuming, done=lambda: None)

    return run.carried_out(wanted, job, keep=None)


@pytest.mark.usefixtures("few", "address")
def test_an_image_that_ends_its_actor_fails_alone() -> None:
    """Again and again, it would end them all; what was at work beside it is done."""
    red = np.zeros((60, 80, 3), np.uint8)
    red[..., 0] = 255
    Image.fromarray(red).save("photos/aa.png")
    summary = made(ray_engines.deadly)
    assert counts(summary) == (4, 0, 0, 2, 0)
    reasons = sorted(failure.reason for failure in summary.failed)
    assert reasons[0].startswith("photos/aa.png: the process that made it ended 3 times; it may need more memory")
    assert counts(made(ray_engines.harmless)) == (1, 4, 0, 0, 1)


@pytest.mark.usefixtures("few", "address")
def test_actors_that_never_begin_end_the_run() -> None:
    with pytest.raises(MissingRuntimeError, match="actors of Ray cannot begin: "):
        made(ray_engines.still_born)


@pytest.mark.usefixtures("few", "address")
def test_an_actor_with_a_gpu_has_it_for_itself() -> None:
    """Ray is told that there is one, and hands it out; with two cores, the actor serves two threads."""
    assert counts(made(ray_engines.with_one_gpu, size=Size(actors=1, cpus=2, gpus=1))) == (4, 0, 0, 1, 0)


def not_there() -> Engine:
    """Workers cannot import this file, as they cannot import segdeploy where it is not installed."""
    return ray_engines.harmless()


@pytest.mark.usefixtures("few", "address")
def test_a_worker_without_the_package_ends_the_run() -> None:
    with pytest.raises(MissingRuntimeError, match="actors of Ray cannot begin: ModuleNotFoundError: "):
        made(not_there)


@pytest.mark.usefixtures("few", "address")
def test_an_engine_that_is_refused_on_a_worker_ends_the_run() -> None:
    """Proven or not served holds on every machine."""
    with pytest.raises(GateFailedError, match="draws other masks here"):
        made(ray_engines.refuted)
    assert below("masks") == []


@pytest.mark.usefixtures("few", "address")
def test_a_worker_that_does_not_see_a_photograph_ends_the_run() -> None:
    """Else each would be said to be missing."""
    with pytest.raises(InvalidRequestError, match=r"does not see photos/\S+ as it is here") as refused:
        made(ray_engines.elsewhere)
    assert refused.value.remedy.startswith("Mount one file system at the same path")


@pytest.mark.usefixtures("few", "address")
def test_a_photograph_that_is_another_one_there_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that was copied to each machine, some time ago."""
    monkeypatch.setattr("segdeploy.inference.journal.FileState.looks_like", lambda *_: False)
    summary = made(ray_engines.harmless)
    assert (summary.done, len(summary.failed)) == (0, 5)
    assert all("or is another file on" in failure.reason for failure in summary.failed)


# What an actor asks before it begins


def start(folder: Path) -> Start:
    sign = folder / "sign"
    sign.write_text("token")
    no_images = task(SourceList())
    return Start(opened=ray_engines.harmless, task=no_images, folder=folder, sign=sign, token="token")  # noqa: S106


@pytest.mark.usefixtures("workspace")
def test_an_actor_begins_where_it_sees_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(Actor().open(start(tmp_path), actor.VERSION), Ready)
    unseen = [
        Actor().open(dataclasses.replace(start(tmp_path), **other), actor.VERSION)
        for other in ({"token": "of another"}, {"sign": tmp_path / "none"}, {"folder": tmp_path / "none"})
    ]
    assert all(isinstance(each, InvalidRequestError) and "does not see" in each.what for each in unseen)


@pytest.mark.usefixtures("workspace")
def test_an_actor_of_another_version_is_refused(tmp_path: Path) -> None:
    answer = Actor().open(start(tmp_path), "0.0.1, 0")
    assert isinstance(answer, InvalidRequestError)
    assert f"has segdeploy {actor.VERSION}, this is 0.0.1, 0" in answer.what


# How many, and where


@pytest.mark.parametrize(
    "nodes,asked,expected",
    [
        ([{"CPU": 4.0}, {"CPU": 2.0}], {"device": "cpu", "concurrent": True}, Size(actors=6, cpus=1, gpus=0)),
        ([{"CPU": 4.0}, {"CPU": 2.0}], {"device": "cpu", "concurrent": False}, Size(actors=3, cpus=2, gpus=0)),
        ([{"CPU": 8.0, "GPU": 2.0}, {}], {"device": "cuda", "concurrent": False}, Size(actors=2, cpus=4, gpus=1)),
        ([{"CPU": 4.0}], {"device": "cpu", "concurrent": False, "actors": 2}, Size(actors=2, cpus=2, gpus=0)),
        ([{}], {"device": "cuda", "concurrent": True, "actors": 3}, Size(actors=3, cpus=1, gpus=1)),
    ],
)
def test_each_core_or_gpu_has_an_actor(
    monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]], asked: dict[str, Any], expected: Size
) -> None:
    dead = {"Alive": False, "Resources": {"CPU": 64.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [dead, *({"Alive": True, "Resources": node} for node in nodes)])
    assert ray_cluster.size(**({"actors": None} | asked)) == expected


def test_a_cluster_without_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4.0}}])
    with pytest.raises(InvalidRequestError, match="the cluster has no GPU now"):
        ray_cluster.size(device="cuda", concurrent=True, actors=None)


@pytest.mark.parametrize(
    "given,expected",
    [
        (["--ray", "127.0.0.1:1"], "cannot reach Ray at 127.0.0.1:1: "),
        (["--ray", "nonsense"], "cannot reach Ray at nonsense: "),
        (["--ray", "ray://127.0.0.1:10001"], "ray://127.0.0.1:10001 is for Ray's client."),
        (["--ray-actors", "2"], "2 actors of Ray were asked for, and no Ray."),
    ],
)
@pytest.mark.usefixtures("few")
def test_a_ray_that_is_not_there_is_said_at_once(run: Run, given: list[str], expected: str) -> None:
    """Ray itself tries for two minutes."""
    began = time.monotonic()
    refused = run("infer", "photos", *ORT, *given)
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 2)
    assert refused.err.startswith(f"Error: {expected}")
    assert time.monotonic() - began < 30
    assert not Path("masks").exists()


@pytest.mark.usefixtures("few")
def test_without_ray_nothing_of_it_is_imported() -> None:
    code = (
        "import sys, segdeploy; segdeploy.infer('photos', model='unet', engine='ort:fp32');"
        "print(sorted(name for name in sys.modules if name.partition('.')[0] == 'ray'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
