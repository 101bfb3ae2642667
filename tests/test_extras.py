"""What is said where a package of an extra is not here, or does not load."""

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import environments
import pytest

import segdeploy
from segdeploy import extras
from segdeploy.errors import MissingRuntimeError

ALWAYS_HERE = {"PIL", "click", "msgspec", "numpy", "rich", "zlib_ng"}  # `dependencies` of the project


def modules_imported_by_the_package() -> Iterator[str]:
    for path in Path(segdeploy.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module.partition(".")[0]


def test_every_package_that_may_be_missing_is_known_with_its_extra() -> None:
    """Whatever is imported anywhere: what is not Python's, ours or always here is brought by an extra."""
    found = set(modules_imported_by_the_package()) - sys.stdlib_module_names - ALWAYS_HERE - {"segdeploy"}
    imported_by_name = {"tensorboard", "tensorrt", "tensorrt_rtx"}  # by PyTorch, and by the name of a flavour
    assert found | imported_by_name == set(extras.BROUGHT_BY)


def test_every_extra_is_named_by_something() -> None:
    """`gpu` is `cpu` for another device, and says so itself; nothing is told to install an extra that is none."""
    assert {extra for _, extra in extras.BROUGHT_BY.values()} | {"gpu"} == set(environments.EXTRAS)


@pytest.mark.parametrize("module", sorted(extras.BROUGHT_BY))
def test_a_package_that_is_missing_is_named_with_its_extra(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package, extra = extras.BROUGHT_BY[module]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingRuntimeError) as refused, extras.named_where_missing():
        importlib.import_module(module)
    assert refused.value.what == f"{package} is not installed."
    assert refused.value.remedy == f"Install it: pip install 'segdeploy[{extra}]'"
    assert refused.value.exit_code == 3


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which packages are imported before all others."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("openvino", "segdeploy_plugin"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "code,reason",
    [
        ("import numpy_of_another_world", "No module named 'numpy_of_another_world'"),
        ("from openvino import _missing", "cannot import name '_missing' from partially initialized module 'openvino'"),
        ("raise ImportError('libtbb.so.12: cannot open\\nshared object file')", "libtbb.so.12: cannot open shared"),
    ],
)
def test_a_package_that_does_not_load_is_named_with_the_reason(packages: Path, code: str, reason: str) -> None:
    """It is installed: to install it would do nothing."""
    (packages / "openvino.py").write_text(code)
    with pytest.raises(MissingRuntimeError) as refused, extras.named_where_missing():
        importlib.import_module("openvino")
    assert refused.value.what.startswith(f"openvino is installed, but does not load: {reason}")
    assert "\n" not in refused.value.what
    assert refused.value.remedy == "Repair it: pip install --force-reinstall 'segdeploy[openvino]'"


@pytest.mark.parametrize("code", ["from segdeploy import nothing", "import segdeploy.nothing"])
def test_a_module_of_ours_that_is_missing_stays_a_defect(packages: Path, code: str) -> None:
    """Also where a package of an extra calls us: nobody shall install PyTorch because we misspelt a name."""
    (packages / "openvino.py").write_text(code)
    with pytest.raises(ImportError), extras.named_where_missing():
        importlib.import_module("openvino")


def test_a_package_that_no_extra_brings_stays_a_defect(packages: Path) -> None:
    (packages / "segdeploy_plugin.py").write_text("import numpy_of_another_world")
    with pytest.raises(ModuleNotFoundError, match="numpy_of_another_world"), extras.named_where_missing():
        importlib.import_module("segdeploy_plugin")
