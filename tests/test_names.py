"""Names from files and users: what may be a part of a path, and that nothing is written by one that climbs."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import result_files as made
import torch
from conftest import SPEC, Run
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from segdeploy import artifact, models, typed_json
from segdeploy import workspace as places
from segdeploy.checkpoints import checkpoint
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.names import LONGEST, below, require_name
from segdeploy.origin import GraphOrigin, WeightsOrigin
from segdeploy.spec import Precision
from segdeploy.target import Target
from segdeploy.timing import results

CLIMBING = ["../unet", "../../unet", "a/../../unet", "/tmp/unet", "..", "a/..", "\\..\\unet", "..\\unet"]  # noqa: S108 - never written
NO_NAMES = [
    *CLIMBING,
    *("", ".", ".unet", "a..b", "a/b", "a\\b", "u net", "unet\n", "\nunet", "unet\0", "unet\x1b[2J", "ünet", "unet:1"),
    *("nul", "NUL", "Con", "com1", "LPT9", "nul.onnx", "aux.", "\ud800", "n" * (LONGEST + 1)),
]
NAMES = ["unet", "a", "_", "-", "9", "u-net_2.1", "unet.", "console", "com", "com10", "nul-1", "n" * LONGEST]


@pytest.mark.parametrize("name", NAMES)
def test_a_plain_name_is_given_back(name: str) -> None:
    assert require_name(name, "the network") == name


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_plain_name_is_refused_in_two_printable_lines(name: str) -> None:
    """Also where it is long, or would move the cursor of a terminal."""
    with pytest.raises(InvalidRequestError) as refused:
        require_name(name, "the network")
    assert refused.value.what.startswith("the network is named ")
    assert all(line.isprintable() and len(line) < 200 for line in (refused.value.what, refused.value.remedy))


@settings(max_examples=50)
@given(st.text() | st.from_regex(r"[a-z.]{1,4}", fullmatch=True))
def test_whatever_passes_is_one_part_of_a_path(text: str) -> None:
    try:
        name = require_name(text, "it")
    except InvalidRequestError:
        return
    assert Path(name).parts == (name,)
    assert below(Path("export"), name) == Path("export") / name


@pytest.mark.parametrize("name", [*CLIMBING, "", ".", "unet\0", "a\ud800", "n/" * 9 + "../" * 9 + "../x"])
def test_a_name_that_leaves_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidFileError, match="does not lie below"):
        below(tmp_path, name)


@pytest.mark.parametrize("name", ["unet.onnx", "a/b/unet.onnx", "a..b/unet.onnx", "...", "ünet 1.onnx"])
@pytest.mark.parametrize("folder", [Path("export"), Path(), Path("..")], ids=str)
def test_a_name_that_stays_is_joined_as_it_is(name: str, folder: Path) -> None:
    """Whatever was relative stays relative; a folder that was named may itself lie anywhere."""
    assert below(folder, name) == folder / name


def test_links_between_must_not_lead_out(tmp_path: Path) -> None:
    """A folder that is a link is followed; what is written is no link's target, for a new file takes its place."""
    folder, outside = tmp_path / "engines", tmp_path / "outside"
    (folder / "inner").mkdir(parents=True)
    outside.mkdir()
    (folder / "out").symlink_to(outside)
    (folder / "in").symlink_to(folder / "inner")
    (folder / "circle").symlink_to(folder / "circle")
    (tmp_path / "elsewhere").symlink_to(folder)
    for name in ("out/unet.plan", "circle/unet.plan"):
        with pytest.raises(InvalidFileError, match="does not lie below"):
            below(folder, name)
    assert below(folder, "in/unet.plan") == folder / "in" / "unet.plan"
    assert below(tmp_path / "elsewhere", "unet.plan") == tmp_path / "elsewhere" / "unet.plan"
    (folder / "unet.plan").symlink_to(outside / "unet.plan")
    artifact.write_atomically(below(folder, "unet.plan"), b"plan")
    assert not list(outside.iterdir())


@pytest.mark.parametrize("name", CLIMBING)
def test_no_graph_and_no_plan_has_a_path_outside_its_folder(name: str, tmp_path: Path) -> None:
    """The second line of defence, where a Spec was made without its check: `spec.model` once put a plan elsewhere."""
    target = Target(compute_capability="8.9")
    graph = functools.partial(artifact.graph_path, tmp_path, name, Precision.INT8, "signed")
    plan = functools.partial(artifact.plan_path, tmp_path, name, "trt", Precision.FP16, target)
    for place in (graph, plan):
        try:
            assert place().resolve().is_relative_to(tmp_path.resolve())
        except InvalidFileError:
            continue


# Planted in files


def climbing(document: Any, name: str) -> Any:  # noqa: ANN401 - a JSON object
    return {**document, "model": name}


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("climbs", ["../{}", "../../outside/{}", "/{}", "{}/../../x"])
def test_a_checkpoint_whose_network_climbs_is_refused(name: str, climbs: str, tmp_path: Path) -> None:
    source = places.PACKAGED / f"{name}.safetensors"
    found = checkpoint.read(source)
    spec = climbing(json.loads(found.spec.to_json()), climbs.format(name))
    origin = json.dumps(typed_json.to_builtins(found.origin))
    planted = tmp_path / "planted.safetensors"
    metadata = {"format": checkpoint.FORMAT, "spec": json.dumps(spec), "origin": origin}
    save_file({"weight": torch.zeros(1)}, planted, metadata)
    with pytest.raises(InvalidFileError, match="no plain name") as refused:
        checkpoint.read(planted)
    assert str(planted) in refused.value.what


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("climbs", ["../{}", "../../outside/{}", "/{}", "{}/../../x"])
def test_a_manifest_whose_network_climbs_is_refused(name: str, climbs: str, workspace: Path) -> None:
    manifest = workspace / "export" / "unet.fp32.onnx.json"
    document = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(json.dumps({**document, "spec": climbing(document["spec"], climbs.format(name))}))
    with pytest.raises(InvalidFileError, match="no plain name") as refused:
        artifact.read(manifest.with_suffix(""))
    assert str(manifest) in refused.value.what


def test_commands_write_nothing_by_a_name_that_climbs(
    workspace: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Manifest and metadata of the graph agree, as in a file made to do harm; the folders stay as they were."""
    graph = workspace / "export" / "unet.fp32.onnx"
    model = onnx.load(graph)
    manifest = Path(f"{graph}.json")
    document = json.loads(manifest.read_text(encoding="utf-8"))
    document["spec"] = climbing(document["spec"], "../../outside/unet")
    for entry in model.metadata_props:
        entry.value = json.dumps(document["spec"], sort_keys=True)
    onnx.save(model, graph)
    manifest.write_text(json.dumps({**document, "sha256": artifact.sha256(graph)}), encoding="utf-8")
    here = workspace / "deep" / "er"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    before = sorted(workspace.rglob("*"))
    for command in (
        ["build", "--model", str(graph), "--engine", "trt-rtx:fp32", "--compute-capability", "8.9"],
        ["inspect", str(graph)],
    ):
        ended = run(*command)
        assert (ended.code, len(ended.err.strip().splitlines())) == (3, 2), ended.err
        assert "no plain name" in ended.err
    assert sorted(workspace.rglob("*")) == before


@pytest.mark.parametrize("path", ["../unet.fp32.onnx", "/etc/hostname", "", "..", "a\0b"])
def test_a_low_precision_graph_that_names_a_float32_one_elsewhere_is_refused(path: str, workspace: Path) -> None:
    """It ended in a traceback: such a name is none that can stand beside the file."""
    fp32 = artifact.read(workspace / "export" / "unet.fp32.onnx")
    origin = dataclasses.replace(fp32.origin, graph=GraphOrigin(path=path, sha256=fp32.sha256))
    with pytest.raises(InvalidFileError, match="does not lie below"):
        places.fp32_graph_of(dataclasses.replace(fp32, precision=Precision.INT8, origin=origin))


@pytest.mark.parametrize("path", ["../weights/unet.safetensors", "/etc/hostname", "", ".."])
def test_packaged_weights_are_those_of_the_package(path: str, workspace: Path) -> None:
    fp32 = artifact.read(workspace / "export" / "unet.fp32.onnx")
    origin = dataclasses.replace(fp32.origin, weights=WeightsOrigin(kind="packaged", sha256="0" * 64, path=path))
    with pytest.raises(InvalidFileError, match="does not lie below"):
        places.checkpoint_of(dataclasses.replace(fp32, origin=origin))


@pytest.mark.parametrize("kept", [*CLIMBING, "", ".", "unet\0.onnx"])
def test_a_result_that_kept_a_file_elsewhere_is_refused(kept: str, tmp_path: Path) -> None:
    """It would be opened and run by `bench --compare`; also a link in the folder beside the result leads nowhere."""
    require_refused(tmp_path, kept, says="does not lie below")


@pytest.mark.parametrize("kept", [5, 1.5, True, ["a"], {"a": "b"}])
def test_a_result_whose_kept_file_is_no_text_is_refused(kept: object, tmp_path: Path) -> None:
    require_refused(tmp_path, kept, says="kept: expected str")


def test_a_result_that_kept_a_file_behind_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "r.json.files").symlink_to(tmp_path)
    require_refused(tmp_path / "here", "r.json.files/unet.onnx", says="does not lie below")


def require_refused(folder: Path, kept: object, *, says: str) -> None:
    document = made.document("unet")
    document["subjects"][0]["kept"] = kept
    path = folder / "r.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InvalidFileError, match=says):
        results.read(path)


def test_the_spec_is_the_place_where_names_enter() -> None:
    """Files, Python and commands all make one."""
    with pytest.raises(InvalidRequestError, match="no plain name"):
        type(SPEC)("../unet", {}, SPEC.classes, SPEC.colours, 64, 64)
