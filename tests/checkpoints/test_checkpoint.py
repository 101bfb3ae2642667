"""Checkpoints: everything that goes in comes out, and whatever else is given ends in two lines, not in a traceback."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from segdeploy import artifact, models, typed_json
from segdeploy.checkpoints import checkpoint
from segdeploy.errors import InvalidFileError, InvalidRequestError, MissingRuntimeError, SegdeployError
from segdeploy.origin import Origin, TrainingOrigin
from segdeploy.spec import Precision, Spec

MADE_AT = "2025-01-02T03:04:05.678+00:00"
ORIGIN = Origin(
    command="train", version="0", training=TrainingOrigin(epoch=7, val_miou=0.5, plan={"epochs": 9}, best=0.5)
)


def spec(**changes: Any) -> Spec:  # noqa: ANN401 - any field of Spec
    fields: dict[str, Any] = {
        "model": "unet",
        "variant": {"multiplier": 0.125, "form": "padded"},
        "classes": ("sky", "road with ünïcode"),
        "colours": ((128, 128, 128), (0, 64, 255)),
        "height": 48,
        "width": 64,
        "ignore_index": 11,
        **changes,
    }
    return Spec(**fields)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "unet.safetensors"
    checkpoint.save(path, models.rebuild(spec()).state_dict(), spec(), origin=ORIGIN, made_at=MADE_AT)
    return path


def require_refused(path: Path, *, says: str, kind: type[SegdeployError] = InvalidFileError) -> None:
    """Both ways in: reading what it promises and loading what it holds."""
    with pytest.raises(kind) as caught:
        checkpoint.load(path)
    assert says in caught.value.what
    assert str(path) in caught.value.what
    assert len(caught.value.what) < 400
    assert caught.value.remedy


def test_a_network_comes_back_as_it_was(saved: Path) -> None:
    """Bit by bit, with the running statistics, and ready to classify."""
    torch.manual_seed(0)
    expected = models.rebuild(spec()).state_dict()
    network, its_spec = checkpoint.load(saved)
    assert its_spec == spec()
    assert not network.training
    found = network.state_dict()
    assert found.keys() == expected.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in expected.items()
    )


def test_the_same_network_is_the_same_file(saved: Path, tmp_path: Path) -> None:
    """A graph names its checkpoint by its sha256, and safetensors writes a header in another order each time."""
    torch.manual_seed(0)
    state = models.rebuild(spec()).state_dict()
    for index in range(10):
        again = tmp_path / f"{index}.safetensors"
        checkpoint.save(again, state, spec(), origin=ORIGIN, made_at=MADE_AT)
        assert artifact.sha256(again) == artifact.sha256(saved)


def test_what_it_promises_is_in_the_file(saved: Path) -> None:
    found = checkpoint.read(saved)
    assert found.spec == spec()
    assert found.origin == ORIGIN
    assert found.made_at == MADE_AT
    assert (found.path, found.kind, found.precision) == (saved, "checkpoint", Precision.FP32)
    assert found.sha256 == artifact.sha256(saved)


def test_the_file_is_plain_safetensors(saved: Path) -> None:
    """Any tool that reads the format reads our tensors; nothing is pickled."""
    assert load_file(saved).keys() == models.rebuild(spec()).state_dict().keys()


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_any_memory_layout_is_saved(tmp_path: Path, layout: torch.memory_format) -> None:
    """Training runs in channels-last, and safetensors takes contiguous tensors only."""
    tensor = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=layout).requires_grad_()
    checkpoint.save(tmp_path / "x.safetensors", {"weight": tensor}, spec(), origin=ORIGIN)
    assert torch.equal(checkpoint.tensors(tmp_path / "x.safetensors")["weight"], tensor)


def test_reading_a_spec_needs_neither_torch_nor_safetensors(saved: Path) -> None:
    """`segdeploy models` and `inspect` run on hosts that only infer."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys(("torch", "safetensors", "onnx", "onnxruntime")))
from pathlib import Path
from segdeploy.checkpoints import checkpoint
from segdeploy.errors import MissingRuntimeError
path = Path({str(saved)!r})
print(checkpoint.read(path).spec.to_json())
try:
    checkpoint.tensors(path)
except MissingRuntimeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, what, remedy = done.stdout.splitlines()
    assert Spec.from_json(text) == spec()
    assert what == "safetensors is not installed."
    assert "pip install 'segdeploy[train]'" in remedy


def test_without_torch_loading_says_how_to_get_it(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MissingRuntimeError, match="safetensors is not installed"):
        checkpoint.tensors(saved)


def test_what_training_resumes_from_is_a_network_too(saved: Path, tmp_path: Path) -> None:
    """`export --weights unet.last.safetensors`: the optimiser's tensors are no part of the network."""
    path = tmp_path / "unet.last.safetensors"
    everything = {**load_file(saved), "momentum/0/exp_avg": torch.zeros(3), "momentum/0/step": torch.tensor(4.0)}
    checkpoint.save(path, everything, spec(), origin=ORIGIN)
    assert checkpoint.load(path)[0].state_dict().keys() == load_file(saved).keys()
    assert "momentum/0/step" in checkpoint.tensors(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"12345",
        b"This is a text file, and a longer one than a header's length field.",
        b"\x89PNG\r\n\x1a\n" + bytes(64),
        bytes(64),
        struct.pack("<Q", 2**63) + b"{",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 19) + b'{"__metadata__":"x"}'[:19],
        struct.pack("<Q", 20) + b'{"__metadata__":"x"}',
        struct.pack("<Q", 18) + b'{"__metadata__":5}',
        struct.pack("<Q", 100_000) + b"[" * 100_000,
    ],
    ids=["empty", "short", "text", "png", "zeros", "huge", "list", "null", "cut", "string", "number", "deep"],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    """Whoever mistypes a path learns so, whatever stands there."""
    path = tmp_path / "notes.safetensors"
    path.write_bytes(content)
    require_refused(path, says="not a safetensors file")


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.9999])
def test_a_truncated_file_is_refused(saved: Path, kept: float) -> None:
    """A download that broke off keeps a whole header."""
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * kept)])
    require_refused(saved, says="is corrupt")


def test_a_header_cut_off_is_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:100])
    require_refused(saved, says="not a safetensors file")


def test_foreign_safetensors_are_refused(tmp_path: Path) -> None:
    """Weights of another tool carry no Spec: no classes, no size, no normalisation."""
    for metadata in (None, {}, {"format": "pt"}):
        path = tmp_path / "foreign.safetensors"
        save_file({"weight": torch.zeros(2)}, path, metadata)
        require_refused(path, says="no checkpoint of segdeploy")


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    require_refused(tmp_path / "none.safetensors", says="there is no checkpoint", kind=InvalidRequestError)
    require_refused(tmp_path, says="there is no checkpoint", kind=InvalidRequestError)


@pytest.mark.parametrize("change", ["missing", "strange", "shape"])
def test_tensors_of_another_network_are_refused(saved: Path, change: str) -> None:
    """One key or one shape off would leave a layer at random: no mask would say so."""
    tensors = load_file(saved)
    if change == "missing":
        del tensors["classifier.weight"]
    elif change == "strange":
        tensors["classifier.gain"] = torch.zeros(2)
    else:
        tensors["classifier.weight"] = torch.zeros(3, 8, 1, 1)
    checkpoint.save(saved, tensors, spec(), origin=ORIGIN)
    require_refused(saved, says="does not hold the network its Spec names")


def test_another_networks_tensors_are_refused_in_one_line(saved: Path) -> None:
    """PyTorch lists every key it misses; the two lines of an error must stay two lines."""
    checkpoint.save(saved, load_file(saved), spec(model="segnet", variant={"multiplier": 0.125}), origin=ORIGIN)
    require_refused(saved, says="does not hold the network its Spec names")


@pytest.mark.parametrize("key", ["spec", "origin"])
@pytest.mark.parametrize("value", [None, "", "no JSON", "5", "[1]", "null"])
def test_a_checkpoint_with_a_damaged_header_is_refused(saved: Path, key: str, value: str | None) -> None:
    """Metadata that another program rewrote: gone, or no longer what it was."""
    origin = json.dumps(typed_json.to_builtins(ORIGIN))
    metadata = {"format": checkpoint.FORMAT, "spec": spec().to_json(), "origin": origin}
    metadata = {name: text for name, text in {**metadata, key: value}.items() if text is not None}
    save_file(load_file(saved), saved, metadata)
    with pytest.raises(InvalidFileError) as caught:
        checkpoint.read(saved)
    assert caught.value.remedy


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 400), value=st.integers(0, 255))
def test_a_flipped_byte_in_the_header_is_no_traceback(saved: Path, where: int, value: int) -> None:
    """Read well or refused; nothing else leaves `read`."""
    content = bytearray(saved.read_bytes())
    content[where] = value
    damaged = saved.with_name("damaged.safetensors")
    damaged.write_bytes(content)
    try:
        checkpoint.read(damaged)
    except SegdeployError as error:
        assert error.remedy  # noqa: PT017 - either outcome is right


def test_saving_replaces_what_was_there(saved: Path) -> None:
    checkpoint.save(saved, {"weight": torch.ones(1)}, spec(), origin=ORIGIN)
    assert list(checkpoint.tensors(saved)) == ["weight"]
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_whoever_may_read_the_folder_may_read_the_checkpoint(saved: Path) -> None:
    """As the system's mask says, and not 0600, which a service's own user could not open."""
    beside = saved.with_name("beside")
    beside.write_bytes(b"")
    assert saved.stat().st_mode == beside.stat().st_mode


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_a_failure_in_the_middle_of_saving_leaves_the_old_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    """Half of a new checkpoint must never stand where a whole one stood."""
    before = saved.read_bytes()

    def half(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise failure

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(failure):
        checkpoint.save(saved, {"weight": torch.zeros(1)}, spec(), origin=ORIGIN)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_refused_write_leaves_the_old_file_and_says_so(saved: Path) -> None:
    """A real refusal of the system in the middle of the file, by the limit on a file's size."""
    resource = pytest.importorskip("resource", reason="this system has no limits on a file's size")
    before = saved.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(InvalidFileError, match=r"cannot write .*: File too large\.") as caught:
            checkpoint.save(saved, {"weight": torch.zeros(100_000)}, spec(), origin=ORIGIN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.remedy
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_folder_that_cannot_be_made_is_said(saved: Path) -> None:
    """A file stands where the folder should be."""
    with pytest.raises(InvalidFileError, match="cannot write"):
        checkpoint.save(saved / "unet.safetensors", {"weight": torch.zeros(1)}, spec(), origin=ORIGIN)
