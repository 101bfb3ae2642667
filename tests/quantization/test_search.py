"""From float32 to fp16 and int8 inside a budget: who takes which part, what is written, refused and kept."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import photograph, photographs
from onnx import TensorProto, helper
from PIL import Image

from segdeploy import artifact, engines, making, models
from segdeploy.artifact import Artifact
from segdeploy.errors import GateFailedError, InvalidFileError, InvalidRequestError, SegdeployError
from segdeploy.graphs.graph import Graph, convolution_types, convolution_work
from segdeploy.making import Narrow
from segdeploy.proof import stages
from segdeploy.quantization import search
from segdeploy.quantization.search import Parts, parts_of
from segdeploy.spec import Precision

FORMS = ("signed", "unsigned")
INT8, FP16 = Precision.INT8, Precision.FP16
SIGNED, UNSIGNED, HALF = (Path("export", f"unet.{tag}.onnx") for tag in ("int8-signed", "int8-unsigned", "fp16"))
LOOSE = 0.9  # of the pixels: the small network in int8 draws 97 % of its own
EIGHT = tuple(f"{index}.png" for index in range(8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("photos"), *EIGHT)


@pytest.fixture(scope="module")
def narrowed(small: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `small` with its graphs in fp16 and in both forms of int8, inside the default budgets."""
    folder = tmp_path_factory.mktemp("narrowed")
    shutil.copytree(small, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        making.narrow("unet", Narrow(INT8, calibrate=photos))
        making.narrow("unet", Narrow(FP16, calibrate=photos))
    return folder


@pytest.fixture
def work(narrowed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the test: a copy of `narrowed`."""
    shutil.copytree(narrowed, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def quickly(**options: Any) -> Narrow:  # noqa: ANN401 - the fields of Narrow
    """One form, and a budget that the small network keeps at once."""
    return Narrow(INT8, **{"forms": ["unsigned"], "min_agreement": LOOSE, "max_drop": 100.0, **options})


def stages_of(graph: Artifact) -> dict[str, Any]:
    assert graph.parity is not None
    return {stage["name"]: stage for stage in graph.parity["stages"]}


def hashes(files: Sequence[Path]) -> list[str]:
    return [artifact.sha256(file) for file in files]


def copied(source: Path, to: Path, name: Callable[[str], str]) -> Path:
    """The files of a folder in another one, under other names."""
    to.mkdir(parents=True)
    for file in source.iterdir():
        shutil.copy(file, to / name(file.name))
    return to


def corrupt(image: Path) -> Path:
    image.write_bytes(image.read_bytes()[:300])
    return image


# Who takes which part

Asked = dict[str, Any]


def packaged_alone(_: Path, __: Path) -> Asked:
    return {"packaged": making.packaged_images(), "calibrate": None, "data": None}


def calibrate_alone(photos: Path, _: Path) -> Asked:
    return {"packaged": None, "calibrate": photos, "data": None}


def labelled_alone(_: Path, labelled: Path) -> Asked:
    return {"packaged": None, "calibrate": None, "data": labelled}


def labelled_without_lists(_: Path, labelled: Path) -> Asked:
    (labelled / "val.txt").unlink()
    return {"packaged": None, "calibrate": None, "data": labelled}


def both_folders(photos: Path, labelled: Path) -> Asked:
    return {"packaged": None, "calibrate": photos, "data": labelled}


def packaged_and_labelled(_: Path, labelled: Path) -> Asked:
    return {"packaged": making.packaged_images(), "calibrate": None, "data": labelled}


def the_same_images_twice(_: Path, labelled: Path) -> Asked:
    """Whoever calibrates on what is also given to prove."""
    return {"packaged": None, "calibrate": labelled / "images", "data": labelled}


def the_same_images_under_other_names(_: Path, labelled: Path) -> Asked:
    other = copied(labelled / "images", labelled.parent / "other", lambda name: f"copy of {name}")
    return {"packaged": None, "calibrate": other, "data": labelled}


def copies_in_one_folder(photos: Path, labelled: Path) -> Asked:
    """Frames of a camera that stood still; sorted by their bytes, copies are neighbours."""
    images = copied(photos, labelled.parent / "twice/images", str)
    shutil.copy(photos / "0.png", images / "copy of 0.png")
    return {"packaged": None, "calibrate": None, "data": images.parent}


def copies_in_both_lists(_: Path, labelled: Path) -> Asked:
    shutil.copy(labelled / "images/0.png", labelled / "images/1.png")
    return {"packaged": None, "calibrate": None, "data": labelled}


@pytest.mark.parametrize(
    "asked",
    [
        packaged_alone,
        calibrate_alone,
        labelled_alone,
        labelled_without_lists,
        both_folders,
        packaged_and_labelled,
        the_same_images_twice,
        the_same_images_under_other_names,
        copies_in_one_folder,
        copies_in_both_lists,
    ],
    ids=lambda asked: asked.__name__,
)
def test_images_that_prove_take_no_other_part(
    asked: Callable[[Path, Path], Asked], photos: Path, labelled: Path
) -> None:
    """Not by their names: by their bytes."""
    parts = parts_of(**asked(photos, labelled))
    assert parts.calibrate
    assert parts.rank
    assert parts.prove
    others = {*hashes(parts.calibrate), *hashes([picture.image for picture in parts.rank])}
    assert others.isdisjoint(hashes([picture.image for picture in parts.prove]))


def test_of_the_packaged_images_sixteen_calibrate_and_rank_and_sixteen_prove() -> None:
    """Sorted by sha256: the even ones decide, the odd ones prove."""
    ordered = sorted(making.packaged_images(), key=artifact.sha256)
    parts = parts_of(packaged=making.packaged_images(), calibrate=None, data=None)
    assert list(parts.calibrate) == [picture.image for picture in parts.rank] == ordered[::2]
    assert [picture.image for picture in parts.prove] == ordered[1::2]
    assert len(parts.calibrate) == len(parts.prove) == 16


def parts_by_hash(parts: Parts) -> list[list[str]]:
    return [hashes(parts.calibrate), *(hashes([each.image for each in part]) for part in (parts.rank, parts.prove))]


@pytest.mark.parametrize("rename", [str.upper, lambda name: f"{9 - int(name[0])}.png"], ids=["upper", "backwards"])
def test_names_decide_nothing(photos: Path, tmp_path: Path, rename: Callable[[str], str]) -> None:
    """The same photographs make the same graph, whatever they are called."""
    other = copied(photos, tmp_path / "other", rename)
    parts = parts_by_hash(parts_of(packaged=None, calibrate=photos, data=None))
    assert parts == parts_by_hash(parts_of(packaged=None, calibrate=other, data=None))
    reversed_order = parts_of(packaged=making.packaged_images()[::-1], calibrate=None, data=None)
    assert reversed_order == parts_of(packaged=making.packaged_images(), calibrate=None, data=None)


def test_val_txt_proves_with_its_masks(labelled: Path) -> None:
    parts = parts_of(packaged=None, calibrate=None, data=labelled)
    assert {picture.image.name for picture in parts.prove} == {"0.png", "2.png", "4.png"}
    assert {picture.image.name for picture in parts.rank} == {"1.png", "3.png", "5.png"}
    for picture in (*parts.rank, *parts.prove):
        assert picture.mask is not None
        assert picture.mask.stem == picture.image.stem


def test_where_every_image_is_in_val_txt_half_of_them_decide(labelled: Path) -> None:
    """The examples that come with the package are such a folder."""
    (labelled / "val.txt").write_text("".join(f"{index}.png\n" for index in range(6)))
    parts = parts_of(packaged=None, calibrate=None, data=labelled)
    assert (len(parts.rank), len(parts.prove)) == (3, 3)


def test_a_folder_for_calibration_that_has_labels_gives_what_trains(labelled: Path, photos: Path) -> None:
    data = copied(photos, labelled.parent / "unlabelled/images", str).parent
    parts = parts_of(packaged=None, calibrate=labelled, data=data)
    trains = {artifact.sha256(labelled / f"images/{index}.png") for index in (1, 3, 5)}
    assert set(hashes(parts.calibrate)) <= trains


def test_no_more_images_calibrate_and_rank_than_change_anything(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MOST_CALIBRATING", 2)
    monkeypatch.setattr(search, "MOST_RANKING", 3)
    parts = parts_of(packaged=None, calibrate=photos, data=None)
    assert (len(parts.calibrate), len(parts.rank), len(parts.prove)) == (2, 3, 3)


@pytest.mark.parametrize("names", [(), ("images/a.png",)], ids=["no images", "one image"])
@pytest.mark.parametrize("option", ["calibrate", "data"])
def test_too_few_images_are_refused(tmp_path: Path, names: tuple[str, ...], option: str) -> None:
    photographs(tmp_path, *names)
    folders = {"calibrate": None, "data": None, option: tmp_path}
    with pytest.raises(InvalidRequestError):
        parts_of(packaged=None, **folders)


def test_calibration_images_that_all_prove_are_refused(photos: Path, tmp_path: Path) -> None:
    """Each must be kept out, and none is left."""
    proving = parts_of(packaged=None, calibrate=None, data=copied(photos, tmp_path / "d/images", str).parent).prove
    (tmp_path / "calibrate").mkdir()
    shutil.copy(proving[0].image, tmp_path / "calibrate")
    with pytest.raises(InvalidRequestError, match="is also a proof image"):
        parts_of(packaged=None, calibrate=tmp_path / "calibrate", data=tmp_path / "d")


@pytest.mark.usefixtures("workspace")
def test_own_weights_have_no_calibration_images_by_themselves() -> None:
    """Random scales would be worse than none, and the packaged images show cells."""
    with pytest.raises(InvalidRequestError, match="there are no images to calibrate") as refused:
        making.narrow("unet", Narrow(INT8))
    assert "--calibrate DIR" in refused.value.remedy
    assert "--data DIR" in refused.value.remedy


# What is written


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("work")
def test_an_int8_manifest_says_how_it_was_made(photos: Path, form: str) -> None:
    graph = artifact.read(SIGNED if form == "signed" else UNSIGNED)
    made_by, fp32 = graph.made_by, artifact.read(Path("export/unet.fp32.onnx"))
    assert (graph.precision, graph.form) == (INT8, form)
    assert made_by["graph"] == {"path": "unet.fp32.onnx", "sha256": fp32.sha256}
    assert made_by["weights"] == fp32.made_by["weights"]
    chosen = parts_of(packaged=None, calibrate=photos, data=None).calibrate
    assert made_by["calibration"]["images"] == {file.name: artifact.sha256(file) for file in chosen}
    assert made_by["calibration"]["skipped"] == {}
    assert made_by["calibration"]["method"] == "percentile"
    assert made_by["budget"] == {"min_agreement": 0.98, "max_drop": 0.5}
    assert set(made_by["delivered"]) == ({"ort", "ov"} if form == "unsigned" else set())


@pytest.mark.parametrize("path", [SIGNED, UNSIGNED, HALF], ids=["signed", "unsigned", "fp16"])
@pytest.mark.usefixtures("work")
def test_what_the_manifest_calls_float_is_float_in_the_file(path: Path) -> None:
    """And nothing else is: of the work, the share that the graph asks for."""
    graph = artifact.read(path)
    model = Graph(onnx.load(path))
    types, convolutions = convolution_types(model), convolution_work(model)
    wide = {layer for layer, kind in types.items() if kind is not graph.precision}
    assert wide == set(graph.made_by["in_float"]) & set(types)
    share = 1 - sum(convolutions[layer] for layer in wide) / sum(convolutions.values())
    assert graph.made_by["narrow_share"] == pytest.approx(share)
    assert graph.made_by["asked"][graph.precision] == pytest.approx(share)
    assert sum(graph.made_by["asked"].values()) == pytest.approx(1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("work")
def test_a_budget_that_is_tight_leaves_some_layers_in_float_with_the_reason(form: str) -> None:
    """The network of these tests is untrained and hard to round: all of it in int8 is outside by default."""
    graph = artifact.read(SIGNED if form == "signed" else UNSIGNED)
    assert 0 < graph.made_by["narrow_share"] < 1
    assert set(graph.made_by["in_float"].values()) == {"gives accuracy back"}
    stage = stages_of(graph)["graph"]
    assert stage["decided_agreement"] >= 0.98
    assert graph.parity is not None
    assert graph.parity["images"] == 4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("work")
def test_the_pareto_file_shows_the_steps(form: str) -> None:
    graph = artifact.read(SIGNED if form == "signed" else UNSIGNED)
    steps = json.loads(graph.path.with_suffix(".pareto.json").read_bytes())["steps"]
    assert steps[0]["in_float"] == []
    assert steps[0]["agreement"] < 0.98, "or nothing would have been ranked"
    assert sum(len(step["in_float"]) == 1 for step in steps) == len(convolution_work(Graph(onnx.load(graph.path))))
    (accepted,) = [step for step in steps if step["accepted"]]
    assert accepted["in_float"] == sorted(graph.made_by["in_float"])
    assert accepted["agreement"] >= 0.98
    assert accepted["narrow_share"] == graph.made_by["narrow_share"]
    assert all((step["ms"] is None) == (form == "signed") for step in steps)
    assert any(step["front"] for step in steps)


@pytest.mark.usefixtures("work")
def test_the_unsigned_form_is_proven_to_the_engine_and_the_signed_to_the_graph() -> None:
    """No runtime on a CPU computes the signed form as TensorRT does, and the proof does not pretend one did."""
    signed, unsigned = artifact.read(SIGNED), artifact.read(UNSIGNED)
    for graph, proven_to in ((signed, "graph"), (unsigned, "engine")):
        assert list(stages_of(graph)) == ["fp32 graph", "graph", "engine"]
        assert graph.parity is not None
        assert (graph.parity["passed"], graph.parity["proven_to"]) == (True, proven_to)
        assert (graph.parity["form"], graph.parity["gated"]) == (graph.form, True)
    engine = stages_of(signed)["engine"]
    assert (engine["agreement"], engine["passed"]) == (None, None)
    assert "signed form" in engine["reason"]
    assert stages_of(unsigned)["engine"]["agreement"] >= 0.98


@pytest.mark.usefixtures("work")
def test_fp16_has_its_own_budget_and_no_calibration() -> None:
    graph = artifact.read(HALF)
    assert (graph.form, graph.made_by["budget"]) == (None, {"min_agreement": 0.999, "max_drop": 0.05})
    assert "calibration" not in graph.made_by
    assert len(graph.made_by["range"]["images"]) == 4
    assert stages_of(graph)["graph"]["decided_agreement"] >= 0.999
    assert {facts["delivered"] for facts in graph.made_by["delivered"].values()} == {"fp32"}


@pytest.mark.usefixtures("work")
def test_the_same_images_give_the_same_graph() -> None:
    """Also from a copy of them with other names, and without the record of the first search."""
    before = artifact.read(SIGNED)
    for record in Path("export").glob("*.pareto.json"):
        record.unlink()
    renamed = photographs(Path("other"), *(f"photo {name}" for name in EIGHT))
    (graph,) = making.narrow("unet", Narrow(INT8, forms=["signed"], calibrate=renamed))
    assert graph.sha256 == before.sha256
    assert graph.made_by["in_float"] == before.made_by["in_float"]


@pytest.mark.usefixtures("workspace")
def test_with_labels_miou_is_part_of_the_budget(labelled: Path) -> None:
    """What decides calibrates where no folder was given for it."""
    (graph,) = making.narrow("unet", Narrow(INT8, forms=["unsigned"], data=labelled))
    assert set(graph.made_by["calibration"]["images"]) == {"1.png", "3.png", "5.png"}
    assert graph.parity is not None
    assert graph.parity["images"] == 3
    for stage in graph.parity["stages"]:
        assert stage["miou_change"] >= -0.5
        assert stage["decided_agreement"] >= 0.98
    steps = json.loads(graph.path.with_suffix(".pareto.json").read_bytes())["steps"]
    assert all(step["miou_drop"] is not None for step in steps)


@pytest.mark.usefixtures("workspace")
def test_images_without_labels_decide_by_agreement_alone(tmp_path: Path) -> None:
    data = photographs(tmp_path / "unlabelled", *(f"images/{name}" for name in EIGHT))
    (graph,) = making.narrow("unet", quickly(data=data))
    assert stages_of(graph)["graph"]["miou_change"] is None
    assert len(graph.made_by["calibration"]["images"]) == 4


@pytest.mark.parametrize("method", ["minmax", "mse", pytest.param("entropy", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("workspace")
def test_the_calibration_that_was_asked_for_is_the_one_in_the_manifest(photos: Path, method: str) -> None:
    (graph,) = making.narrow("unet", quickly(calibrate=photos, method=method, min_agreement=0.5))
    assert graph.made_by["calibration"]["method"] == method


@pytest.mark.usefixtures("workspace")
def test_random_weights_are_measured_and_give_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are for timing: an untrained network has nothing to lose."""
    monkeypatch.chdir(tmp_path)
    (graph,) = making.narrow(
        "unet",
        Narrow(INT8, forms=["unsigned"], min_agreement=1.0, max_drop=0.0),
        weights="random",
        size=(64, 64),
        options={"multiplier": 0.125},
    )
    assert graph.made_by["in_float"] == {}
    assert graph.made_by["narrow_share"] == 1
    assert graph.parity is not None
    assert (graph.parity["weights"], graph.parity["gated"]) == ("random", False)
    assert not graph.parity["passed"]
    assert not graph.path.with_suffix(".pareto.json").exists()
    with making.open("unet", engine="int8") as engine:
        assert engine.classify(photograph(64, 64)[None]).shape == (1, 64, 64)


# Images that cannot be read


@pytest.mark.usefixtures("workspace")
def test_a_corrupt_image_among_those_that_calibrate_is_left_out_and_named(labelled: Path, tmp_path: Path) -> None:
    calibrate = photographs(tmp_path / "calibrate", *(f"{name}.png" for name in "abcdefghij"))
    bad = corrupt(calibrate / "j.png")
    (graph,) = making.narrow("unet", quickly(calibrate=calibrate, data=labelled))
    calibration = graph.made_by["calibration"]
    assert list(calibration["skipped"]) == [bad.name]
    assert "truncated" in calibration["skipped"][bad.name]
    assert {"g.png", "h.png", "i.png"} <= set(calibration["images"]), "a to f are those of the labelled folder"
    assert bad.name not in calibration["images"]


@pytest.mark.usefixtures("workspace")
def test_a_corrupt_image_of_the_only_folder_is_left_out_and_named(photos: Path, tmp_path: Path) -> None:
    """With --calibrate alone, what calibrates also decides."""
    calibrate = copied(photos, tmp_path / "calibrate", str)
    chosen = parts_of(packaged=None, calibrate=calibrate, data=None).calibrate
    bad = corrupt(chosen[0])
    (graph,) = making.narrow("unet", quickly(calibrate=calibrate))
    assert list(graph.made_by["calibration"]["skipped"]) == [bad.name]


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("precision", [INT8, FP16])
def test_where_no_calibration_image_can_be_read_there_is_no_graph(
    labelled: Path, tmp_path: Path, precision: Precision
) -> None:
    """Never a random scale."""
    calibrate = photographs(tmp_path / "calibrate", "a.png", "b.png", "c.png")
    for index, file in enumerate(sorted(calibrate.iterdir())):
        file.write_bytes(corrupt(file).read_bytes()[: 300 - index])
    with pytest.raises(InvalidFileError, match="none of 3 calibration images can be read"):
        making.narrow("unet", Narrow(precision, calibrate=calibrate, data=labelled))
    assert sorted(path.name for path in Path("export").iterdir()) == ["unet.fp32.onnx", "unet.fp32.onnx.json"]


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("index", [0, 1], ids=["proves", "decides"])
def test_a_mask_with_a_strange_class_is_refused(labelled: Path, index: int) -> None:
    Image.fromarray(np.full((60, 80), 7, np.uint8)).save(labelled / f"masks/{index}.png")
    with pytest.raises(InvalidFileError, match=f"{index}.png has class 7; the network has 2 classes"):
        making.narrow("unet", quickly(data=labelled))
    assert not UNSIGNED.exists()


# Budgets that cannot be met


@pytest.fixture
def before(work: Path) -> dict[str, bytes]:
    """The graphs and manifests that are there."""
    return {path.name: path.read_bytes() for path in (work / "export").glob("*.onnx*")}


def assert_untouched(before: dict[str, bytes]) -> None:
    assert {path.name: path.read_bytes() for path in Path("export").glob("*.onnx*")} == before
    artifact.read(UNSIGNED)


def test_a_budget_that_no_proof_keeps_leaves_the_earlier_graph(
    before: dict[str, bytes], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step is tried, up to a graph that is float32 altogether."""
    monkeypatch.setattr(stages.NarrowLimits, "broken", lambda _, __: "a planted reason")
    proofs: list[Artifact] = []
    monkeypatch.setattr(search, "stages", counted(search.stages, proofs))
    with pytest.raises(GateFailedError, match=r"inside the budget: stage 'graph': a planted reason\.") as failed:
        making.narrow("unet", quickly(calibrate=photos, min_agreement=0.97))
    assert "--min-agreement" in failed.value.remedy
    assert proofs[-1].made_by["narrow_share"] == pytest.approx(0)
    assert_untouched(before)


def counted(honest: Callable[..., Any], kept: list[Artifact]) -> Callable[..., Any]:
    def called(graph: Artifact, *others: object) -> object:
        kept.append(graph)
        return honest(graph, *others)

    return called


def test_where_the_float_graph_is_another_network_no_layer_is_to_blame(
    before: dict[str, bytes], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One proof, and no ranking of what cannot help."""
    monkeypatch.setattr(stages.Limits, "broken", lambda _, __: "a planted reason")
    proofs: list[Artifact] = []
    monkeypatch.setattr(search, "stages", counted(search.stages, proofs))
    with pytest.raises(GateFailedError, match="stage 'fp32 graph': a planted reason"):
        making.narrow("unet", quickly(calibrate=photos))
    assert len(proofs) == 1
    assert_untouched(before)


def test_where_no_choice_keeps_the_budget_there_is_nothing_to_prove(
    before: dict[str, bytes], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = stages.Judge.measure
    worse = functools.partial(dataclasses.replace, agreement=0.5)
    monkeypatch.setattr(stages.Judge, "measure", lambda judge, engine: worse(measured(judge, engine)))
    fresh = quickly(calibrate=photos, method="minmax")  # another key: nothing is known of it
    with pytest.raises(GateFailedError, match="no choice of float32 layers keeps to it"):
        making.narrow("unet", fresh)
    assert_untouched(before)


def test_a_refuted_float_graph_is_made_narrower_for_nobody(work: Path, photos: Path) -> None:
    fp32 = artifact.read(work / "export/unet.fp32.onnx")
    stage = {"name": "graph", "reason": "a planted reason", "passed": False}
    report = {"passed": False, "gated": True, "first_failing_stage": "graph", "stages": [stage]}
    artifact.write_manifest(dataclasses.replace(fp32, parity=report))
    with pytest.raises(GateFailedError, match="a planted reason"):
        making.narrow("unet", quickly(calibrate=photos))


def test_a_full_disk_keeps_the_earlier_graph(small_disk: Path, work: Path) -> None:
    """Without its manifest it would count as unfinished."""
    graph = dataclasses.replace(artifact.read(work / UNSIGNED), path=small_disk / "u.onnx", made_by={}, parity=None)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    tiny = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [value]))
    written = search.write(graph, tiny, {})
    (small_disk / "others").write_bytes(b"x" * 8000)
    with pytest.raises(SegdeployError, match="No space left on device"):
        search.write(graph, tiny, {"passed": True})
    assert artifact.read(graph.path).sha256 == written.sha256


# Who opens what


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize(
    "path,engine,what",
    [
        (SIGNED, "ort:int8", "is in the signed form; ort is exact in unsigned"),
        (SIGNED, "ov:int8", "is in the signed form; ov is exact in unsigned"),
        (UNSIGNED, "fp32", "is an int8 graph; fp32 was asked for"),
        (UNSIGNED, "torch:fp32", "is an int8 graph; fp32 was asked for"),
        (HALF, "int8", "is an fp16 graph; int8 was asked for"),
    ],
)
def test_a_graph_of_another_form_or_precision_is_refused(path: Path, engine: str, what: str) -> None:
    with pytest.raises(InvalidFileError, match=what):
        making.open(str(path), engine=engine, device="cpu")


@pytest.mark.parametrize("engine", ["torch:int8", "torch:fp16"])
@pytest.mark.usefixtures("work")
def test_the_reference_has_one_precision(engine: str) -> None:
    with pytest.raises(InvalidRequestError, match="in fp32"):
        making.open("unet", engine=engine, device="cpu")


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("engine", ["ort:int8", "ov:int8", "ort:fp16", "ov:fp16"])
def test_every_verb_takes_a_narrow_engine(photos: Path, labelled: Path, engine: str) -> None:
    runtime, precision = engines.parse(engine)
    report = making.infer([str(photos)], model="unet", engine=engine, device="cpu")
    assert (report["done"], report["runtime"], report["precision"]) == (8, runtime, precision)
    assert report["delivered"] == ("int8" if precision == "int8" else "fp32")
    scored = making.evaluate("unet", data=labelled, engine=engine, device="cpu")
    assert (scored["runtime"], scored["images"]) == (runtime, 3)
    proof = making.parity("unet", engine=engine, data=labelled, device="cpu")
    assert [stage["name"] for stage in proof["stages"]] == ["fp32 graph", "graph", "engine"]
    assert proof["stages"][-1]["runtime"] == runtime
    assert proof["stages"][-1]["decided_agreement"] > 0.95


@pytest.mark.usefixtures("work")
def test_the_signed_form_can_be_proven_again_without_an_engine(labelled: Path) -> None:
    report = making.parity(str(SIGNED), engine="int8", data=labelled, device="cpu")
    assert report["stages"][-1]["agreement"] is None
    assert report["proven_to"] == "graph"
    assert artifact.read(SIGNED).parity == json.loads(json.dumps(report))


def test_a_narrow_graph_whose_float_graph_is_gone_cannot_be_proven(work: Path, labelled: Path) -> None:
    (work / "export/unet.fp32.onnx").unlink()
    with pytest.raises(SegdeployError, match=r"unet\.fp32\.onnx"):
        making.parity(str(UNSIGNED), engine="int8", data=labelled, device="cpu")


# Graphs that are at hand


@pytest.fixture
def packaged_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """What `--engine int8` makes of the packaged U-Net at a small size, with six of its images."""
    monkeypatch.chdir(tmp_path)
    few = making.packaged_images()[:6]
    monkeypatch.setattr(making, "packaged_images", lambda: few)
    making.export("unet", size=(64, 64))
    return making.graph_for("unet", INT8, form="unsigned")


def test_a_narrow_graph_is_made_once_and_anew_when_the_float_graph_is_another(packaged_int8: Artifact) -> None:
    """`export --size` must not leave yesterday's int8 graph to answer for the new one."""
    written = packaged_int8.path.stat().st_mtime_ns
    assert making.graph_for("unet", INT8, form="unsigned").sha256 == packaged_int8.sha256
    making.export("unet", size=(64, 64))  # to the byte the same: nothing is stale
    assert making.graph_for("unet", INT8, form="unsigned").path.stat().st_mtime_ns == written
    making.export("unet", size=(48, 64))
    again = making.graph_for("unet", INT8, form="unsigned")
    assert (again.spec.height, again.spec.width) == (48, 64)
    with making.open("unet", engine="int8") as engine:
        assert engine.classify(photograph(48, 64)[None]).shape == (1, 48, 64)


def test_a_graph_without_its_manifest_is_unfinished_and_made_again(packaged_int8: Artifact) -> None:
    artifact.manifest_path(packaged_int8.path).unlink()
    again = making.graph_for("unet", INT8, form="unsigned")
    assert again.sha256 == packaged_int8.sha256
    assert artifact.read(again.path).parity is not None


@pytest.mark.usefixtures("work")
def test_where_own_weights_have_no_images_a_stale_graph_is_no_substitute() -> None:
    making.export("unet", size=(48, 64))
    with pytest.raises(InvalidRequestError, match="there are no images to calibrate"):
        making.open("unet", engine="int8")


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("edited", [{}, {"graph": None}, {"graph": {}}], ids=["no graph", "null", "no sha256"])
def test_a_manifest_that_was_edited_is_refused(edited: dict[str, Any]) -> None:
    graph = artifact.read(UNSIGNED)
    artifact.write_manifest(dataclasses.replace(graph, made_by=edited))
    with pytest.raises(InvalidFileError, match="not as segdeploy wrote it"):
        making.open("unet", engine="int8")


# Sensitivity


@pytest.mark.usefixtures("work")
def test_sensitivity_knows_what_the_export_measured(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranking that the export needed is read from its record: not one layer is measured again."""
    record = SIGNED.with_suffix(".pareto.json")
    before = record.read_bytes()
    monkeypatch.setattr(stages.Judge, "measure", lambda *_: pytest.fail("measured twice"))
    report = making.sensitivity("unet", Narrow(INT8, forms=["signed"], calibrate=photos))
    assert record.read_bytes() == before
    assert report["cost_unit"] == "multiply-adds"
    scores = [layer["score"] for layer in report["layers"]]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.usefixtures("work")
def test_sensitivity_speaks_of_milliseconds_where_a_runtime_is_here(photos: Path) -> None:
    report = making.sensitivity("unet", Narrow(INT8, calibrate=photos))
    assert (report["form"], report["cost_unit"], report["images"]) == ("unsigned", "ms", 4)
    assert {layer["layer"] for layer in report["layers"]} == set(convolution_work(Graph(onnx.load(UNSIGNED))))
    assert json.loads(json.dumps(report))["schema"] == 1


# All four, with what the package brings


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_the_packaged_networks_keep_the_default_budget_in_every_form(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for graph in making.narrow(name, Narrow(INT8)):
        assert graph.parity is not None
        assert graph.parity["passed"]
        assert graph.parity["images"] == 16
        assert graph.made_by["narrow_share"] >= 0.95
        assert stages_of(graph)["graph"]["decided_agreement"] >= 0.98


@pytest.mark.slow
def test_a_trained_network_gives_back_what_a_tight_budget_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (graph,) = making.narrow("unet", Narrow(INT8, forms=["unsigned"], min_agreement=0.9993))
    assert 0 < graph.made_by["narrow_share"] < 1
    assert stages_of(graph)["engine"]["decided_agreement"] >= 0.9993
    steps = json.loads(graph.path.with_suffix(".pareto.json").read_bytes())["steps"]
    assert len(steps) > len(convolution_work(Graph(onnx.load(graph.path))))
