"""Small functions, and nothing heavy before it is asked for."""

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import segdeploy

MEDIAN_LINES, MOST_LINES, MOST = 10, 35, 0.9
RUNTIMES = "onnxruntime openvino tensorrt tensorrt_rtx cuda pycuda"
FRAMEWORKS = f"{RUNTIMES} torch onnx onnxscript safetensors tensorboard"
WITHOUT_FRAMEWORKS = (
    "cli inventory infer pipeline choice engines engines.ort engines.ov engines.pytorch engines.trt engines.trt_rtx "
    "signature images artifact checkpoint dataset models"
)

BLOCKED = """
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split():
            raise ImportError(f"{name} is not here", name=name)

sys.meta_path.insert(0, Blocker())
names = [f"segdeploy.{name}" for name in sys.argv[2].split()]
if not names:
    import segdeploy
    names = [module.name for module in pkgutil.walk_packages(segdeploy.__path__, "segdeploy.", onerror=print)]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def lengths() -> Iterator[tuple[int, str]]:
    """Source lines of every function, decorators and docstring included."""
    root = Path(segdeploy.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                yield (node.end_lineno or first) - first + 1, f"{path.relative_to(root)}:{first} {node.name}"


def test_functions_are_short() -> None:
    """Half of them fit a glance and nine in ten a screen, as in the packages that read best."""
    found = sorted(lengths(), reverse=True)
    longest = "\n".join(f"{lines:4} {where}" for lines, where in found[:15])
    counts = [lines for lines, _ in found]
    assert len(counts) > 100
    assert statistics.median(counts) <= MEDIAN_LINES, longest
    assert sum(lines < MOST_LINES for lines in counts) >= MOST * len(counts), longest


def imported_without(blocked: str, names: str = "") -> int:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, blocked, names], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_every_module_imports_without_the_runtimes() -> None:
    """A machine has the one it needs."""
    modules = sum(path.name != "__init__.py" for path in Path(segdeploy.__file__).parent.rglob("*.py"))
    assert imported_without(RUNTIMES) >= modules


def test_what_runs_an_engine_imports_without_a_framework() -> None:
    """A GPU host that only infers has neither torch nor onnx."""
    assert imported_without(FRAMEWORKS, WITHOUT_FRAMEWORKS) == len(WITHOUT_FRAMEWORKS.split())
