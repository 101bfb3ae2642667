"""A small trained-looking network, its graph, photographs, and the real command."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import onnx
import pytest
from hypothesis import settings
from numpy.typing import NDArray
from PIL import Image

import segdeploy
from segdeploy import artifact, engines, models
from segdeploy import workspace as places
from segdeploy.artifact import Artifact
from segdeploy.checkpoints import checkpoint
from segdeploy.engines import Engine, RunOptions
from segdeploy.errors import MissingRuntimeError
from segdeploy.graphs import to_onnx
from segdeploy.making import ExportOptions
from segdeploy.origin import Origin, TrainingOrigin, ValidationPicture
from segdeploy.proof import executed
from segdeploy.spec import Precision, Spec
from segdeploy.timing import latency

if TYPE_CHECKING:
    from segdeploy.blocks import Network

SPEC = Spec("unet", {"multiplier": 0.125}, ("ground", "thing"), ((20, 40, 60), (255, 196, 0)), 64, 64)
TIGHT = 0.985  # min_agreement of the graphs of low precision
COMMAND = Path(sys.executable).with_name("segdeploy")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:  # noqa: ANN401 - any JSON document
        return json.loads(self.out)


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    """Hear Ctrl-C, as children do then too: what a shell starts in the background ignores it. Time no example."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
    settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one worker run what one file asks of one network: what its fixtures make of that network is made once."""
    for item in items:
        parameters = (
            item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
        )
        network = next((value for value in parameters if isinstance(value, str) and value in models.names()), None)
        if network is not None and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(f"{item.path.stem} {network}"))


class Run(Protocol):
    """Arguments of `segdeploy`, and what is put into its environment."""

    def __call__(self, *arguments: str | bytes | Path, **environment: str) -> Outcome: ...


# x86 without VNNI adds products of bytes in 16 bits, which saturate: int8 engines then draw other masks than the graph.
INT8_SATURATES = not executed.has_units(Precision.INT8, "cpu")


@pytest.fixture(scope="session", autouse=True)
def _a_user_without_a_past(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keys, trust and caches are the tests' own, in this process and in the commands it starts."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("CONFIG", "CACHE"):
            patch.setenv(f"XDG_{kind}_HOME", str(tmp_path_factory.mktemp(kind.lower())))
        for variable in ("SEGDEPLOY_KEY_FILE", "COLUMNS", "LINES"):  # readline sets the last two
            patch.delenv(variable, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _each_graph_is_exported_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """PyTorch's exporter takes seconds, and the same network gives the same bytes (tests/graphs/test_to_onnx.py)."""
    honest, kept = to_onnx.to_graph, tmp_path_factory.getbasetemp().parent / "exported graphs"

    @functools.wraps(honest)
    def to_graph(network: "Network", spec: Spec) -> onnx.ModelProto:
        try:
            key = hashlib.sha256(pickle.dumps((network, spec))).hexdigest()
        except (pickle.PicklingError, AttributeError):  # a class inside a test
            return honest(network, spec)
        path = kept / f"{key}.onnx"
        if not path.is_file():
            artifact.write_atomically(path, honest(network, spec).SerializeToString())
        return onnx.load(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(to_onnx, "to_graph", to_graph)
        yield


@pytest.fixture(scope="session")
def run() -> Run:
    """Call the real command in the working directory of the test."""

    def call(*arguments: str | bytes | Path, **environment: str) -> Outcome:
        done = subprocess.run(
            [COMMAND, *arguments], capture_output=True, env=os.environ | environment, check=False, timeout=300
        )
        return Outcome(done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr))

    return call


@pytest.fixture(scope="session")
def segdeploy_data() -> Path:
    """The folder with nuclei/, odd_images/ and photos/."""
    named = os.environ.get("SEGDEPLOY_DATA")
    if not named:
        pytest.skip("SEGDEPLOY_DATA does not name the folder that holds nuclei/, odd_images/ and photos/")
    return Path(named)


@pytest.fixture
def engine_ms(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Artifact], float]], None]:
    """Let each call of an engine take the milliseconds that are said of its file, by the clock that `bench` reads.

    Nothing waits, and no other work on this machine changes what is measured.
    """
    honest, now = engines.open_engine, [0]

    def plant(ms_of: Callable[[Artifact], float]) -> None:
        def opened(file: Artifact, **others: Any) -> Engine:  # noqa: ANN401 - what bench gives it
            engine = honest(file, **others)
            classify = engine.classify

            def timed(*batch: Any) -> object:  # noqa: ANN401 - what classify takes
                now[0] += round(1e6 * ms_of(file))
                return classify(*batch)

            monkeypatch.setattr(engine, "classify", timed)
            return engine

        monkeypatch.setattr(engines, "open_engine", opened)
        clock = SimpleNamespace(perf_counter_ns=lambda: now[0], monotonic=time.monotonic)
        monkeypatch.setattr(latency, "time", clock)

    return plant


def require_device(runtime: str, device: str) -> None:
    """Skip where a runtime cannot use a device here; fail where SEGDEPLOY_REQUIRE (`make gpu-check`) names it."""
    module = engines.modules()[runtime]
    try:
        if device in module.devices():
            return
        reason = f"the installed {runtime} was built without {device}"
    except MissingRuntimeError as error:
        reason = error.what
    if runtime in os.environ.get("SEGDEPLOY_REQUIRE", "").split(","):
        pytest.fail(reason)
    pytest.skip(reason)


def known(value: T | None) -> T:
    """A fact that a test relies on; where it is missing, the test fails."""
    assert value is not None
    return value


def photograph(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """(height, width, 3) of soft blobs, which the small network divides between its classes."""
    blobs = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(blobs).resize((width, height), Image.Resampling.BICUBIC))


def photographs(folder: Path, *names: str, height: int = 60, width: int = 80) -> Path:
    """Write photographs, each another one, with whatever their names' endings say."""
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(height, width, seed)).save(path)
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints/unet.safetensors, what it was validated on, and export/unet.fp32.onnx, proven."""
    import torch

    folder = tmp_path_factory.mktemp("small")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: Any = models.build("unet", 2, **SPEC.variant).eval()
    logits = models.deployed(network, dataclasses.replace(SPEC, output="logits"))
    with torch.no_grad():
        ground, thing = logits(torch.from_numpy(photograph(64, 64)[None]))[0]
        network.classifier.bias[1] -= (thing - ground).median()  # untrained networks see one class everywhere
    path = folder / places.CHECKPOINTS / "unet.safetensors"
    checkpoint.save(path, network.state_dict(), SPEC, origin=trained_origin(folder / "validation", path))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        segdeploy.export("unet")
    return folder


def trained_origin(data: Path, trained: Path) -> Origin:
    """The origin of a checkpoint that training left at `trained`, validated on four pictures that are written here."""
    pictures = labelled_pictures(data, 4)
    validation = tuple(
        ValidationPicture(
            image=os.path.relpath(image, trained.parent),
            image_sha256=artifact.sha256(image),
            mask=os.path.relpath(mask, trained.parent),
            mask_sha256=artifact.sha256(mask),
        )
        for image, mask in pictures
    )
    return Origin(
        command="train",
        version="0",
        training=TrainingOrigin(epoch=1, val_miou=0.5, plan={}, validation=validation),
    )


def labelled_pictures(folder: Path, count: int) -> list[tuple[Path, Path]]:
    """Photographs in images/ and their masks in masks/: the bright half is class 1."""
    photographs(folder, *(f"images/{index}.png" for index in range(count)))
    (folder / "masks").mkdir(exist_ok=True)
    pairs = []
    for image in sorted((folder / "images").iterdir()):
        bright = np.asarray(Image.open(image).convert("L")) > 127
        mask = folder / "masks" / image.name
        Image.fromarray(bright.astype(np.uint8)).save(mask)
        pairs.append((image, mask))
    return pairs


@pytest.fixture
def workspace(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the test: a copy of `small`."""
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eight photographs, 0.png to 7.png."""
    return photographs(tmp_path_factory.mktemp("photos"), *(f"{index}.png" for index in range(8)))


@pytest.fixture(scope="session")
def low_precision(small: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `small` with its graphs in fp16 and in both forms of int8, which give layers back on any processor.

    Untrained, it is hard to round: all of it in int8 agrees in 0.982 of the pixels with VNNI, and in fewer without.
    """
    folder = tmp_path_factory.mktemp("low_precision")
    shutil.copytree(small, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for precision, agreement in (("int8", TIGHT), ("fp16", None)):
            options = ExportOptions(calibrate=photos, min_agreement=agreement)
            segdeploy.export("unet", precision=precision, options=options)
    return folder


@pytest.fixture
def converted(low_precision: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the test: a copy of `low_precision`."""
    shutil.copytree(low_precision, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with export/unet.fp32.onnx of the packaged weights, and its proof."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        segdeploy.export("unet")
    return folder


@pytest.fixture
def packaged(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the test: a copy of `exported`."""
    shutil.copytree(exported, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def engine(workspace: Path) -> Iterator[Engine]:
    """The small network in ONNX Runtime; the working directory is `workspace`."""
    with segdeploy.open(
        str(workspace / "export/unet.fp32.onnx"), engine="ort:fp32", options=RunOptions(threads=1)
    ) as opened:
        yield opened


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A labelled folder of six images, three of them for validation; the bright half is class 1."""
    return labelled_photographs(tmp_path / "data")


def labelled_photographs(folder: Path) -> Path:
    """Six images with masks, three of them for validation; the bright half is class 1."""
    labelled_pictures(folder, 6)
    (folder / "val.txt").write_text("0.png\n2.png\n4.png\n")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 16 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    mounted = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)  # noqa: S607 - beside mount


@contextlib.contextmanager
def as_ordinary_user() -> Iterator[None]:
    """Permissions hold for whoever runs the tests; where that is root, only the working directory can be reached."""
    privileged = os.geteuid() == 0
    if privileged:
        os.seteuid(65534)
    try:
        yield
    finally:
        if privileged:
            os.seteuid(0)
