"""What every file in `engines/` keeps: a new engine is tested because it is there."""

import dataclasses
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import require_device

from segdeploy import artifact, engines, models
from segdeploy.checkpoints import checkpoint
from segdeploy.engines import Engine, ort
from segdeploy.errors import InvalidFileError, InvalidRequestError, MissingRuntimeError
from segdeploy.graphs import adopted
from segdeploy.graphs import to_onnx as export
from segdeploy.origin import Origin, WeightsOrigin
from segdeploy.spec import Precision, Spec

SIZE = (32, 48)
WEIGHTS = WeightsOrigin(kind="random", path="none", sha256="0" * 64)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, artifact.Artifact]:
    """A small checkpoint and its graph, by kind."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(3)
    network = models.build("unet", 3, multiplier=0.125).eval()
    colours = ((0, 0, 0), (255, 0, 0), (0, 255, 0))
    spec = Spec("unet", {"multiplier": 0.125}, ("sky", "road", "car"), colours, *SIZE)
    checkpoint.save(folder / "unet.safetensors", network.state_dict(), spec, origin=Origin(command="test", version="0"))
    graph = export.to_onnx(network, spec, folder / "unet.fp32.onnx", weights=WEIGHTS)
    return {"checkpoint": checkpoint.read(folder / "unet.safetensors"), "graph": graph}


PLACES = [
    pytest.param((name, device), id=f"{name}-{device}", marks=[pytest.mark.gpu] if device == "cuda" else [])
    for name, module in engines.modules().items()
    for device in module.DEVICES
]


@pytest.fixture(params=PLACES)
def engine(request: pytest.FixtureRequest, files: dict[str, artifact.Artifact], tmp_path: Path) -> Iterator[Engine]:
    """Every engine wherever it runs; what this machine has no GPU or no package for is skipped by name."""
    runtime, device = request.param
    require_device(runtime, device)
    module = engines.modules()[runtime]
    file = (
        engines.compiling(runtime).compile(files["graph"], tmp_path) if module.OPENS == "plan" else files[module.OPENS]
    )
    with engines.open_engine(file, runtime=runtime, device=device) as opened:
        yield opened


def pictures(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(count).integers(0, 256, (count, *SIZE, 3), dtype=np.uint8)


def test_says_what_it_is(engine: Engine) -> None:
    assert engine.device in {"cpu", "cuda"}
    assert engine.delivered is Precision.FP32
    assert engine.runtime in engines.names()


def test_classifies_batches_of_any_size_alike(engine: Engine) -> None:
    """A picture's map does not depend on its neighbours in the batch."""
    images = pictures(4)
    together = engine.classify(images)
    assert together.shape == (4, *SIZE)
    assert together.dtype == np.uint8
    one_by_one = np.concatenate([engine.classify(image[None]) for image in images])
    assert np.mean(together == one_by_one) > 0.999


def test_fills_the_array_it_is_given(engine: Engine) -> None:
    out = np.full((2, *SIZE), 99, np.uint8)
    assert engine.classify(pictures(2), out) is out
    np.testing.assert_array_equal(out, engine.classify(pictures(2)))


def test_batches_in_flight_are_collected_in_any_order(engine: Engine) -> None:
    """And what was handed in may be overwritten at once."""
    given = [pictures(count) for count in (2, 1, 3, 2, 1)]
    expected = [engine.classify(batch) for batch in given]
    tickets = []
    for batch in given:
        handed_in = batch.copy()
        tickets.append(engine.submit(handed_in))
        handed_in[:] = 0
    for index in (3, 0, 4, 2, 1):
        np.testing.assert_array_equal(engine.collect(tickets[index]), expected[index])
    assert engine.in_flight >= 1


def test_a_ticket_is_collected_once_and_by_its_own_engine(engine: Engine) -> None:
    ticket = engine.submit(pictures(1))
    engine.collect(ticket)
    with pytest.raises(InvalidRequestError, match="was collected"):
        engine.collect(ticket)
    with pytest.raises(InvalidRequestError, match="not of this engine"):
        engine.collect(engines.Ticket(engine=object(), count=1, pending=None))  # type: ignore[arg-type] # any other engine


def test_a_closed_engine_takes_nothing(engine: Engine) -> None:
    ticket = engine.submit(pictures(1))
    engine.close()
    engine.close()
    with pytest.raises(InvalidRequestError, match="this engine is closed"):
        engine.submit(pictures(1))
    with pytest.raises(InvalidRequestError, match="this engine is closed"):
        engine.collect(ticket)


def test_the_clock_of_the_device_gives_as_many_times_as_were_asked_for(engine: Engine) -> None:
    """Or none, where a runtime has no such clock."""
    found = engine.device_ms(pictures(2), runs=3)
    assert found is None or (len(found) == 3 and all(ms > 0 for ms in found))
    assert (found is None) == (engine.device == "cpu" or engine.runtime == "ort")


@pytest.mark.parametrize("wrong", [(1, *SIZE), (2, *SIZE[::-1]), SIZE], ids=["fewer", "turned", "no batch"])
def test_an_array_that_the_maps_do_not_fit_is_refused(engine: Engine, wrong: tuple[int, ...]) -> None:
    """NumPy would spread one map over several, or say something of shapes that nobody gave."""
    ticket = engine.submit(pictures(2))
    with pytest.raises(InvalidRequestError, match=r"the class maps are uint8 \(2, 32, 48\)"):
        engine.collect(ticket, np.empty(wrong, np.uint8))
    assert engine.collect(ticket).shape == (2, *SIZE)


def test_takes_arrays_that_are_views(engine: Engine) -> None:
    """Flipped and strided images are what people have."""
    flipped = pictures(2)[:, :, ::-1]
    np.testing.assert_array_equal(engine.classify(flipped), engine.classify(flipped.copy()))


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 31, 48, 3), np.uint8),
        np.zeros((1, 32, 48, 3), np.float32),
        np.zeros((32, 48, 3), np.uint8),
        np.zeros((1, 3, 32, 48), np.uint8),
        np.zeros((0, 32, 48, 3), np.uint8),
    ],
    ids=["size", "type", "no batch", "channels first", "nothing"],
)
def test_refuses_other_arrays_with_the_shape_it_takes(engine: Engine, wrong: np.ndarray) -> None:
    with pytest.raises(InvalidRequestError, match=r"takes uint8 \(N, 32, 48, 3\)"):
        engine.classify(wrong)


def test_segments_a_photograph_at_its_own_size(engine: Engine) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (77, 50, 3), dtype=np.uint8)
    assert engine.segment(photo).shape == (77, 50)


def test_serves_several_threads(engine: Engine) -> None:
    """The folder run calls concurrent engines from every core."""
    if not engine.concurrent:
        pytest.skip(f"{engine.runtime} says that it serves one thread at a time")
    images = [picture[None] for picture in pictures(8)]
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(engine.classify, images))
    np.testing.assert_array_equal(at_once, [engine.classify(image) for image in images])


def test_all_engines_draw_the_same_maps(files: dict[str, artifact.Artifact]) -> None:
    maps = []
    for name, module in engines.modules().items():
        if "cpu" in module.DEVICES:
            with engines.open_engine(files[module.OPENS], runtime=name, device="cpu") as opened:
                maps.append(opened.classify(pictures(3)))
    for other in maps[1:]:
        assert np.mean(other == maps[0]) > 0.999


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize(
    "name", [name for name, module in engines.modules().items() if {"cuda", "cpu"} <= {*module.DEVICES}]
)
def test_cuda_that_is_not_there_is_an_error_with_its_remedy(name: str, files: dict[str, artifact.Artifact]) -> None:
    """A silent fall-back to the CPU is a defect."""
    with pytest.raises(MissingRuntimeError, match="CUDA") as error:
        engines.open_engine(files[engines.modules()[name].OPENS], runtime=name, device="cuda")
    assert "--device cpu" in error.value.remedy


@pytest.mark.parametrize("name", [name for name, module in engines.modules().items() if module.OPENS != "plan"])
def test_an_unknown_device_is_refused_with_the_known_ones(name: str, files: dict[str, artifact.Artifact]) -> None:
    with pytest.raises(InvalidRequestError, match="tpu") as error:
        engines.open_engine(files[engines.modules()[name].OPENS], runtime=name, device="tpu")
    assert "cpu" in error.value.remedy


def test_a_provider_that_onnx_runtime_leaves_out_without_a_word_is_noticed(
    files: dict[str, artifact.Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU build lists CUDA on machines that have none, and runs on the CPU when asked for it."""
    runtime = ort.import_runtime()
    monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(runtime, "preload_dlls", lambda: None)
    session = runtime.InferenceSession

    def falling_back(path: str, settings: object, providers: object, **others: object) -> object:
        del providers, others
        return session(path, settings, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(runtime, "InferenceSession", falling_back)
    with pytest.raises(MissingRuntimeError, match="the session runs on CPUExecutionProvider"):
        ort.open(files["graph"], device="cuda")


def test_bound_memory_gives_the_same_maps(files: dict[str, artifact.Artifact]) -> None:
    """What CUDA runs with, on the CPU: input and output are bound once for each batch size, and used again."""
    runtime = ort.import_runtime()
    session = runtime.InferenceSession(str(files["graph"].path), providers=["CPUExecutionProvider"])
    bound = ort.BoundOrtEngine(session, files["graph"].spec, device="cpu", delivered=Precision.FP32)
    with bound, ort.open(files["graph"], device="cpu") as plain:
        kept = {}
        for count in (1, 3, 1, 2, 3):
            batch = pictures(count)
            kept[count] = bound.classify(batch)
            np.testing.assert_array_equal(kept[count], plain.classify(batch))
        np.testing.assert_array_equal(kept[1], plain.classify(pictures(1)))  # no later batch wrote into it
        with ThreadPoolExecutor(4) as pool:
            at_once = list(pool.map(bound.classify, [pictures(count) for count in (1, 2, 3, 1)]))
        for maps, count in zip(at_once, (1, 2, 3, 1), strict=True):
            np.testing.assert_array_equal(maps, plain.classify(pictures(count)))


def test_a_broken_graph_is_refused_in_one_line(files: dict[str, artifact.Artifact], tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(files["graph"].path.read_bytes()[:5000])
    with pytest.raises(InvalidFileError, match="is no ONNX file") as error:
        ort.open(dataclasses.replace(files["graph"], path=broken), device="cpu")
    assert "\n" not in error.value.what


def test_a_graph_of_logits_still_gives_class_maps(files: dict[str, artifact.Artifact], tmp_path: Path) -> None:
    """`--output logits` is for looking into; the engine's contract does not change."""
    network, spec = checkpoint.load(files["checkpoint"].path)
    logits = export.to_onnx(network, dataclasses.replace(spec, output="logits"), tmp_path / "l.onnx", weights=WEIGHTS)
    with ort.open(logits, device="cpu") as of_logits, ort.open(files["graph"], device="cpu") as of_class_maps:
        np.testing.assert_array_equal(of_logits.classify(pictures(2)), of_class_maps.classify(pictures(2)))


@pytest.mark.parametrize("runtime", [name for name, module in engines.modules().items() if module.OPENS == "graph"])
def test_a_graph_that_takes_one_image_is_given_a_batch_image_by_image(
    runtime: str, files: dict[str, artifact.Artifact], tmp_path: Path
) -> None:
    """Of a network that somebody exported for one image, whose batch cannot be freed."""
    require_device(runtime, "cpu")
    path = tmp_path / "one.onnx"
    onnx.save(adopted.of_one_image(onnx.load(files["graph"].path)), path)
    one = dataclasses.replace(files["graph"], path=path, sha256=artifact.sha256(path))
    batch = pictures(4)
    with engines.open_engine(one, runtime=runtime, device="cpu") as engine:
        assert engine.alone
        alone = np.concatenate([engine.classify(image[None]) for image in batch])
        np.testing.assert_array_equal(engine.classify(batch), alone)
        tickets = [engine.submit(batch[:3]), engine.submit(batch[3:])]
        np.testing.assert_array_equal(np.concatenate([engine.collect(each) for each in tickets]), alone)


def test_running_a_graph_needs_no_torch(small: Path) -> None:
    """The machine that runs an engine is not the one that trained the network."""
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy, segdeploy\n"
        f"engine = segdeploy.open({str(small / 'export/unet.fp32.onnx')!r}, engine='ort:fp32', device='cpu')\n"
        "print(engine.segment(numpy.zeros((40, 40, 3), 'uint8')).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "(40, 40)\n", done.stderr


@pytest.mark.parametrize(
    "text,expected", [("fp32", (None, "fp32")), ("torch:fp32", ("torch", "fp32")), ("ort:int8", ("ort", "int8"))]
)
def test_an_engine_is_named_by_runtime_and_precision(text: str, expected: tuple[str, str]) -> None:
    name = engines.parse(text)
    assert (name.runtime, name.precision) == expected
    assert str(name) == text


@pytest.mark.parametrize("text", ["caffe:fp32", "fp64", "ort:", ""])
def test_an_unknown_engine_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        engines.parse(text)


def test_engine_files_are_not_named_for_their_library() -> None:
    """`engines/torch.py` would shadow `import torch` for whoever runs a file of that folder."""
    folder = Path(engines.__file__).parent
    shadowing = [
        file.stem for file in folder.glob("*.py") if importlib.util.find_spec(file.stem) and file.stem[0] != "_"
    ]
    assert not shadowing
