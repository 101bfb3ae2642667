"""docs/python.md says what `import segdeploy` offers, and its examples run."""

import importlib.util
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import segdeploy
from segdeploy.errors import InvalidRequestError

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "python.md"


def test_the_signatures_are_those_of_the_code() -> None:
    """`make docs` writes them."""
    spec = importlib.util.spec_from_file_location("write_python", ROOT / "docs" / "write_python.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = PAGE.read_text(encoding="utf-8")
    assert text == module.page(text)


@pytest.mark.slow
def test_every_example_runs_as_written(tmp_path: Path) -> None:
    """In the order of the page, in one process, in a folder with photographs in ./images."""
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) >= 8
    images = tmp_path / "images"
    images.mkdir()
    for image in sorted((ROOT / "examples" / "nuclei" / "images").iterdir())[:6]:
        shutil.copy(image, images)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(examples)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").is_file()
    assert len(list((tmp_path / "masks-overlays").iterdir())) == 6


def test_every_verb_is_a_function_whatever_module_was_imported_before() -> None:
    """A room that bore a verb's name would replace it in the package, once somebody imported the room."""
    names = [module.name for module in pkgutil.walk_packages(segdeploy.__path__, "segdeploy.")]
    names.remove("segdeploy.__main__")
    assert len(names) > 80
    code = (
        f"import importlib\nfor name in {names!r}:\n    importlib.import_module(name)\n"
        "import inspect, segdeploy\n"
        "verbs = [name for name in segdeploy.__all__ if name.islower()]\n"
        "assert all(inspect.isfunction(getattr(segdeploy, name)) for name in verbs), verbs\n"
        "print(' '.join(verbs))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        *("adopt", "bench", "build", "check_data", "convert_masks", "doctor", "evaluate", "export"),
        *(
            "import_checkpoint",
            "infer",
            "inspect",
            "list_models",
            "network",
            "open",
            "parity",
            "read_image",
            "report",
            "sensitivity",
        ),
        "train",
    ]


def test_what_is_offered_is_listed() -> None:
    assert set(segdeploy.__all__) <= set(dir(segdeploy))
    assert all(getattr(segdeploy, name) is not None for name in segdeploy.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'exprot'"):
        segdeploy.exprot  # noqa: B018 - the attribute is what is asked for


def test_the_package_imports_without_anything_heavy() -> None:
    """`import segdeploy` in a program costs it nothing."""
    code = "import sys, segdeploy; print(' '.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"numpy", "PIL", "torch", "onnx", "onnxruntime", "openvino", "rich", "click", "msgspec"}
    assert heavy.isdisjoint(done.stdout.split())


def test_an_engine_is_no_precision() -> None:
    """`ort:int8` says more than a graph can be: it would be forgotten in silence."""
    with pytest.raises(InvalidRequestError, match="'ort:int8' is an engine; a precision was asked for"):
        segdeploy.export("unet", precision="ort:int8")
