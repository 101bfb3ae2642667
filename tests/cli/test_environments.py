"""Each command with each set of extras works, or says in two lines what to install: as docs/environments.md has it."""

import dataclasses
import importlib.metadata
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import environments
import pytest
import result_files
import torch
from _pytest.mark.structures import ParameterSet
from command_line import without_header
from conftest import labelled_photographs, photographs
from foreign_networks import MilesialUNet

import segdeploy
from segdeploy import api
from segdeploy.cli import commands
from segdeploy.making import ExportOptions
from segdeploy.training.options import Augmentation, TrainOptions

PAGE = Path(segdeploy.__file__).parents[1] / "docs" / "environments.md"
EXTRA = re.compile(r"pip install (?:--force-reinstall )?'segdeploy\[(.+)\]'")
# Each command in a process of its own, forked where Python and the command line are loaded: that is half of its time.
RUNS = """
import json, os, sys
import segdeploy.api
import segdeploy.cli
codes = []
for arguments, folder in json.load(sys.stdin):
    if not (child := os.fork()):
        os.chdir(folder)
        for stream in (1, 2):
            os.dup2(os.open(f"{folder}.{stream}", os.O_WRONLY | os.O_CREAT), stream)
        sys.argv = ["segdeploy", *arguments]
        segdeploy.cli.main()
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """A command in an environment, and what the page says of it."""

    command: str
    extras: str
    says: str


def tables() -> list[list[Cell]]:
    """The tables of the page."""
    found: list[list[Cell]] = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| command"):
            columns = cells[1:]
            found.append([])
        elif line.startswith("| `"):
            command = cells[0].strip("`")
            found[-1] += [Cell(command, extras, says) for extras, says in zip(columns, cells[1:], strict=True)]
    return found


WITHOUT_GRAPH, WITH_GRAPH = tables()


def columns(table: Sequence[Cell]) -> list[ParameterSet]:
    """Each set of extras of a table; PyTorch takes seconds to load, and more to export."""
    names = dict.fromkeys(cell.extras for cell in table)
    return [pytest.param(name, marks=[pytest.mark.slow] if "train" in name else []) for name in names]


@pytest.fixture(scope="module")
def without_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/, labelled data/, checkpoints/ of a network trained on it, and result.json of `bench`.

    theirs.pth is the checkpoint of somebody else.
    """
    folder = tmp_path_factory.mktemp("environments") / "without_graph"
    photographs(folder, "photos/0.png", "photos/1.png")
    torch.save(MilesialUNet(2, 3, bilinear=True).state_dict(), folder / "theirs.pth")
    data = labelled_photographs(folder / "data")
    options = TrainOptions(Augmentation(crop=(32, 32)), epochs=8, batch=3, learning_rate=0.01)
    variant = {"multiplier": 0.125}
    segdeploy.train("unet", data=data, size=(32, 32), variant=variant, options=options, out=folder / "checkpoints")
    (result,) = result_files.saved(folder, result_files.document("unet"))
    result.rename(folder / "result.json")
    return folder


@pytest.fixture(scope="module")
def with_graph(without_graph: Path) -> Path:
    """The same with export/, proven."""
    folder = without_graph.with_name("with_graph")
    shutil.copytree(without_graph, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        segdeploy.export("unet", options=ExportOptions(data=folder / "data"))
    return folder


class PythonOf(Protocol):
    """The Python of the environment of a column; the test is skipped where one of its packages is not installed."""

    def __call__(self, extras: str) -> Path: ...


@pytest.fixture(scope="module")
def python_of(tmp_path_factory: pytest.TempPathFactory) -> PythonOf:
    folder, made = tmp_path_factory.mktemp("pythons"), dict[str, Path]()

    def python(extras: str) -> Path:
        try:
            if extras not in made:
                named = [] if extras == "none" else extras.split(",")
                made[extras] = environments.python_with(named, folder / extras)
        except importlib.metadata.PackageNotFoundError as error:
            pytest.skip(f"{error.name} is not installed")
        return made[extras]

    return python


def ends(column: Sequence[Cell], python: Path, *, start: Path, folder: Path) -> dict[str, str]:
    """How the commands of a column end, each in a copy of the folder `start`: in the words of the page."""
    asked = [(shlex.split(cell.command), str(folder / str(index))) for index, cell in enumerate(column)]
    for _, place in asked:
        shutil.copytree(start, place)
    codes = answer(python, RUNS, asked, folder)
    errors = [Path(f"{place}.2").read_text(encoding="utf-8") for _, place in asked]
    return {cell.command: said(code, error) for cell, code, error in zip(column, codes, errors, strict=True)}


def answer(python: Path, program: str, question: object, folder: Path) -> Any:  # noqa: ANN401 - any JSON document
    """What a program makes of the question on its stdin, with nothing on its path but the environment."""
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", program],
        input=json.dumps(question),
        cwd=folder,
        env=own,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def said(code: int, error: str) -> str:
    """`yes`, or the exit code of two lines and the extra that the second of them names; else all that was written.

    What --data holds is said before them.
    """
    if code == 0:
        return "yes"
    lines = without_header(error).splitlines()
    if len(lines) != 2 or not lines[0].startswith("Error: "):
        return f"{code} {error}"
    return f"{code} {', '.join(EXTRA.findall(lines[1]))}".strip()


@pytest.mark.parametrize("extras", columns(WITHOUT_GRAPH))
def test_where_nothing_was_exported(extras: str, python_of: PythonOf, without_graph: Path, tmp_path: Path) -> None:
    column = [cell for cell in WITHOUT_GRAPH if cell.extras == extras]
    found = ends(column, python_of(extras), start=without_graph, folder=tmp_path)
    assert found == {cell.command: cell.says for cell in column}


@pytest.mark.parametrize("extras", columns(WITH_GRAPH))
def test_beside_a_proven_graph(extras: str, python_of: PythonOf, with_graph: Path, tmp_path: Path) -> None:
    column = [cell for cell in WITH_GRAPH if cell.extras == extras]
    found = ends(column, python_of(extras), start=with_graph, folder=tmp_path)
    assert found == {cell.command: cell.says for cell in column}


def test_the_tables_have_every_command() -> None:
    """A new command is entered."""
    assert {cell.command.split()[0] for cell in (*WITHOUT_GRAPH, *WITH_GRAPH)} == set(commands.names())


VERBS = {  # of the Python API, as they are called where nothing has been exported
    "adopt": 'segdeploy.adopt("theirs.onnx", name="theirs")',
    "bench": 'segdeploy.bench("unet")',
    "build": 'segdeploy.build("unet", engine="ort:fp32")',
    "check_data": 'segdeploy.check_data("data")',
    "convert_masks": 'segdeploy.convert_masks("data/images", out="masks")',
    "doctor": "segdeploy.doctor()",
    "evaluate": 'segdeploy.evaluate("unet", data="data")',
    "export": 'segdeploy.export("unet")',
    "import_checkpoint": 'segdeploy.import_checkpoint("theirs.pth", name="own")',
    "infer": 'segdeploy.infer("photos")',
    "inspect": 'segdeploy.inspect("checkpoints/unet.safetensors")',
    "list_models": "segdeploy.list_models()",
    "network": 'segdeploy.network("theirs.pth")',
    "open": 'segdeploy.open("unet")',
    "parity": 'segdeploy.parity("unet")',
    "report": 'segdeploy.report("result.json")',
    "sensitivity": 'segdeploy.sensitivity("unet")',
    "train": 'segdeploy.train("unet", data="data")',
}
CALLS = """
import json, sys
import segdeploy
found = {}
for verb, call in json.load(sys.stdin).items():
    try:
        eval(call)
        found[verb] = "yes"
    except segdeploy.SegdeployError as error:
        found[verb] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


def test_the_verbs_of_python_say_the_same(python_of: PythonOf, without_graph: Path, tmp_path: Path) -> None:
    """Whoever imports segdeploy catches one error, and never an ImportError."""
    assert set(VERBS) == {name for name in segdeploy.__all__ if inspect.isfunction(vars(api).get(name))}
    folder = shutil.copytree(without_graph, tmp_path / "work")
    found = answer(python_of("cpu"), CALLS, VERBS, folder)
    torch = "MissingRuntimeError: PyTorch is not installed.\nInstall it: pip install 'segdeploy[train]'"
    onnx = "MissingRuntimeError: onnx is not installed.\nInstall it: pip install 'segdeploy[train]'"
    jinja2 = "MissingRuntimeError: Jinja2 is not installed.\nInstall it: pip install 'segdeploy[report]'"
    works = dict.fromkeys(("check_data", "doctor", "inspect", "list_models"), "yes")
    assert found.pop("convert_masks").startswith("InvalidRequestError: ")
    others = {"adopt": onnx, "report": jinja2}
    assert found == {**{verb: torch for verb in VERBS if verb != "convert_masks"}, **works, **others}
