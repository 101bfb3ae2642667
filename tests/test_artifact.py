"""A file is what its manifest says, and is written whole or not at all."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import SPEC, Run, as_ordinary_user

from segdeploy import artifact
from segdeploy.certificate import Certificate, Limits, Stage
from segdeploy.errors import InvalidFileError, InvalidRequestError, SegdeployError
from segdeploy.origin import Origin, WeightsOrigin
from segdeploy.spec import SPEC_KEY, Precision

CERTIFICATE = Certificate(
    model="unet",
    precision=Precision.INT8,
    form=None,
    weights="file",
    gated=True,
    passed=True,
    first_failing_stage=None,
    proven_to="graph",
    images=1,
    stages=(Stage(name="graph", passed=True, agreement=1.0),),
    limits=Limits(min_agreement=0.98, max_drop=0.5),
)
GRAPH = Path("export/unet.fp32.onnx")
MANIFEST = Path("export/unet.fp32.onnx.json")


def described(path: Path) -> artifact.Artifact:
    model = onnx.ModelProto(ir_version=8)  # a graph of nothing
    model.metadata_props.add(key=SPEC_KEY, value=SPEC.to_json())
    path.write_bytes(model.SerializeToString())
    return artifact.Artifact(
        path=path,
        kind="graph",
        precision=Precision.INT8,
        spec=SPEC,
        sha256=artifact.sha256(path),
        made_at=artifact.now(),
        origin=Origin(command="test", version="0", weights=WeightsOrigin(kind="file", sha256="0" * 64)),
        certificate=CERTIFICATE,
    )


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_manifest_gives_back_the_artifact(tmp_path: Path) -> None:
    made = described(tmp_path / "a.onnx")
    artifact.write_manifest(made)
    assert artifact.read(made.path) == made
    without_proof = dataclasses.replace(made, certificate=None)
    artifact.write_manifest(without_proof)
    assert artifact.read(made.path) == without_proof


def test_file_and_manifest_can_move(tmp_path: Path) -> None:
    """No path of this machine is written into a manifest."""
    artifact.write_manifest(described(tmp_path / "a.onnx"))
    moved = tmp_path.rename(tmp_path.with_name("elsewhere"))
    assert artifact.read(moved / "a.onnx").path == moved / "a.onnx"
    assert str(tmp_path) not in (moved / "a.onnx.json").read_text()


def test_the_sha256_is_that_of_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert artifact.sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def change_the_file() -> None:
    GRAPH.write_bytes(GRAPH.read_bytes()[:-1] + b"\0")


def cut_the_file() -> None:
    GRAPH.write_bytes(GRAPH.read_bytes()[:-1000])


def change_the_manifest(**fields: object) -> None:
    MANIFEST.write_text(json.dumps({**json.loads(MANIFEST.read_text()), **fields}))


def change_the_sum() -> None:
    change_the_manifest(sha256="0" * 64)


def take_a_folder() -> None:
    GRAPH.unlink()
    GRAPH.mkdir()


def take_a_folder_as_manifest() -> None:
    MANIFEST.unlink()
    MANIFEST.mkdir()


def take_other_weights() -> None:
    origin = json.loads(MANIFEST.read_text())["origin"]
    change_the_manifest(origin={**origin, "weights": {**origin["weights"], "sha256": "0" * 64}})


def take_no_weights() -> None:
    change_the_manifest(origin={**json.loads(MANIFEST.read_text())["origin"], "weights": None})


def take_other_class_names() -> None:
    change_the_manifest(spec={**json.loads(MANIFEST.read_text())["spec"], "classes": ["thing", "ground"]})


@pytest.mark.parametrize(
    "damage,code,reason",
    [
        (change_the_file, 3, "is not the file its manifest describes"),
        (cut_the_file, 3, "is not the file its manifest describes"),
        (change_the_sum, 3, "is not the file its manifest describes"),
        (MANIFEST.unlink, 3, "has no manifest (unet.fp32.onnx.json) beside it"),
        (take_a_folder_as_manifest, 3, f"cannot read {MANIFEST}: it is no regular file"),
        (take_other_weights, 3, f"{GRAPH} carries other weights than its manifest"),
        (take_no_weights, 3, f"{GRAPH} carries other weights than its manifest"),
        (take_other_class_names, 3, f"{GRAPH} carries another Spec than its manifest"),
        (take_a_folder, 2, f"there is no file {GRAPH}"),
        (GRAPH.unlink, 2, f"there is no file {GRAPH}"),
        (lambda: change_the_manifest(certificate=[]), 3, f"{MANIFEST}: certificate: expected object | null, got array"),
        (lambda: change_the_manifest(certificat=None), 3, f"{MANIFEST}: the field certificat is unknown"),
        (lambda: MANIFEST.write_bytes(b"\xff\xfe"), 3, f"{MANIFEST} is not JSON"),
        (lambda: MANIFEST.write_text(MANIFEST.read_text()[:-9]), 3, f"{MANIFEST} is not JSON"),
        (lambda: MANIFEST.write_text('{"schema": 1}'), 3, f"{MANIFEST}: schema"),
        (lambda: MANIFEST.write_text('{"schema": 3}'), 3, f"{MANIFEST}: the field path is missing"),
        (lambda: MANIFEST.write_text("[1, 2]"), 3, f"{MANIFEST}: the document: expected object, got array"),
        (lambda: MANIFEST.write_text("[" * 100_000), 3, f"{MANIFEST} is not JSON"),
    ],
)
@pytest.mark.usefixtures("workspace")
def test_a_file_that_is_not_what_it_says_is_refused(
    run: Run, damage: Callable[[], object], code: int, reason: str
) -> None:
    damage()
    refused = run("inspect", GRAPH)
    assert (refused.code, refused.out) == (code, "")
    assert refused.err.count("\n") == 2
    assert refused.err.startswith(f"Error: {reason}" if reason.startswith(("there", "cannot")) else "Error: ")
    assert reason in refused.err


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 4},
        {"sha256": 5},
        {"kind": "engine"},
        {"precision": "fp64"},
        {"made_at": None},
        {"origin": "hand"},
        {"certificate": [1]},
        {"spec": {}},
        {"unknown": 1},
    ],
)
def test_a_manifest_with_a_wrong_field_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """What reads a manifest later trusts the types of its fields."""
    made = described(tmp_path / "a.onnx")
    artifact.write_manifest(made)
    beside = artifact.manifest_path(made.path)
    beside.write_text(json.dumps({**json.loads(beside.read_text()), **change}))
    with pytest.raises(InvalidFileError) as refused:
        artifact.read(made.path)
    assert str(beside) in refused.value.what
    assert next(iter(change)) in refused.value.what


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(artifact.Artifact)])
def test_a_manifest_without_a_field_is_refused(tmp_path: Path, name: str) -> None:
    made = described(tmp_path / "a.onnx")
    artifact.write_manifest(made)
    beside = artifact.manifest_path(made.path)
    fields = json.loads(beside.read_text())
    del fields[name]
    beside.write_text(json.dumps(fields))
    with pytest.raises(InvalidFileError, match=f"the field {name} is missing"):
        artifact.read_manifest(made.path)


def test_a_missing_file_is_a_wrong_request(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError):
        artifact.read(tmp_path / "nothing.onnx")


def test_writing_makes_the_folders_and_leaves_nothing_else(tmp_path: Path) -> None:
    artifact.write_atomically(tmp_path / "a/b/c.bin", b"new")
    assert (tmp_path / "a/b/c.bin").read_bytes() == b"new"
    assert left_in(tmp_path / "a/b") == ["c.bin"]


def test_a_written_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    """Temporary files of the standard library are for their owner alone."""
    (tmp_path / "plain").write_bytes(b"")
    artifact.write_atomically(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_name_as_long_as_the_disk_allows_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".png")
    artifact.write_atomically(path, b"whole")
    assert left_in(tmp_path) == [path.name]


def test_a_failure_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), artifact.replacing(path) as temporary:  # noqa: PT012 - the block fails half-way
        temporary.write_bytes(b"half of the new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert left_in(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "code,remedy",
    [
        (errno.ENOSPC, "Free some space on that disk"),
        (errno.EDQUOT, "Free some space in that quota"),
        (errno.EROFS, "Choose a folder you may write to"),
        (errno.ENAMETOOLONG, "Give it a shorter name"),
    ],
)
def test_what_cannot_be_written_is_said_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    def half(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:2])
        raise OSError(code, os.strerror(code))

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(InvalidFileError) as refused:
        artifact.write_atomically(path, b"new content")
    assert refused.value.what == f"cannot write {path}: {os.strerror(code)}."
    assert remedy in refused.value.remedy
    assert path.read_bytes() == b"old"
    assert left_in(tmp_path) == ["file"]


def test_a_full_disk_keeps_the_old_file(small_disk: Path) -> None:
    path = small_disk / "file"
    artifact.write_atomically(path, b"old")
    with pytest.raises(InvalidFileError, match="No space left on device"):
        artifact.write_atomically(path, b"x" * 100_000)
    assert path.read_bytes() == b"old"
    assert left_in(small_disk) == ["file"]


def test_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    Path("locked").mkdir(mode=0o555)
    with as_ordinary_user(), pytest.raises(InvalidFileError) as refused:
        artifact.write_atomically(Path("locked/file"), b"")
    assert refused.value.what == "cannot write locked/file: Permission denied."
    assert refused.value.remedy == "Choose a folder you may write to."


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(InvalidFileError, match="cannot write"):
        artifact.write_atomically(tmp_path / "file" / "below", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidFileError, match="Is a directory"):
        artifact.write_atomically(tmp_path / "folder", b"new")
    assert left_in(tmp_path) == ["folder"]


def test_concurrent_writers_leave_one_whole_file(tmp_path: Path) -> None:
    """Threads share a process number, and so do containers that share a disk."""
    path = tmp_path / "file"
    contents = [bytes([letter]) * 300_000 for letter in b"abcdefgh"]
    failures: list[SegdeployError] = []

    def write(content: bytes) -> None:
        try:
            for _ in range(20):
                artifact.write_atomically(path, content)
        except SegdeployError as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert not path.exists() or path.read_bytes() in contents
    for writer in writers:
        writer.join()
    assert failures == []
    assert path.read_bytes() in contents
    assert left_in(tmp_path) == ["file"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    script = "import sys; from pathlib import Path; from segdeploy.artifact import write_atomically\n"
    script += "data = bytes(2**28)\nwhile True: write_atomically(Path(sys.argv[1]), data); Path(sys.argv[1]).unlink()"
    with subprocess.Popen([sys.executable, "-c", script, path]) as writer:
        while not any(0 < found.stat().st_size < 2**28 for found in tmp_path.glob(".*.part")):
            assert writer.poll() is None
            time.sleep(0.001)
        writer.kill()
    assert [name for name in left_in(tmp_path) if not name.startswith(".")] in (["file"], [])
    assert not path.exists() or path.stat().st_size in (len(b"old"), 2**28)
