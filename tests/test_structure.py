"""Small functions and files, rooms that keep to their floor, and nothing heavy before it is asked for."""

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import segdeploy

ROOT = Path(segdeploy.__file__).parent
MEDIAN_LINES, MOST_LINES, MOST = 10, 35, 0.9
LONGEST_FUNCTION, LONGEST_FILE, MOST_PARAMETERS = 50, 450, 12
RUNTIMES = "onnxruntime openvino tensorrt tensorrt_rtx cuda pycuda ray"
FRAMEWORKS = f"{RUNTIMES} torch onnx onnxscript safetensors tensorboard jinja2 obstore"
WITHOUT_FRAMEWORKS = (
    "api artifact benchmarking checkpoints.checkpoint checkpoints.foreign cli data.layouts diagnosis engines "
    "engines.ort engines.ov engines.pytorch engines.trt engines.trt_rtx images inference.ray_job inference.run "
    "inference.sources inspection making models precision precision.fp16 precision.fp8 precision.int8 proving "
    "signature timing.runtime_selection training.options workspace"
)
# Who reads documents that others write, by string key: their formats have no types of ours.
FOREIGN_FORMATS = {
    "checkpoints/checkpoint.py": "the header of a safetensors file",
    "checkpoints/families/_meta.py": "what OpenMMLab writes beside tensors",
    "checkpoints/families/caffe_segnet.py": "the groups of a pattern",
    "checkpoints/families/milesial_unet.py": "the names of its tensors",
    "checkpoints/families/mmsegmentation.py": "the names of its tensors",
    "checkpoints/families/semseg_pspnet.py": "the names of its tensors",
    "checkpoints/families/torchvision_deeplabv3.py": "the names of its tensors",
    "checkpoints/families/torchvision_encoder.py": "the names of its tensors",
    "checkpoints/reading.py": "the header of a safetensors file, and of PyTorch's old format",
    "data/layouts/_cvat_xml.py": "the attributes of CVAT's XML",
    "earlier_files.py": "what segdeploy 0.1 wrote",
    "engines/_audit.py": "the JSON of TensorRT's inspector",
    "engines/ort.py": "the JSON of ONNX Runtime's profiler",
    "engines/ov.py": "the facts that OpenVINO keeps of a node",
    "extras.py": "what Python keeps of a frame",
    "external_data.py": "the entries of an ONNX file about its external data",
    "graphs/said.py": "the metadata of other people's exporters",
    "image_files.py": "what Pillow knows of formats",
    "images.py": "what Pillow keeps of an image",
    "inference/ray_cluster.py": "what Ray says of the machines of a cluster",
    "inference/stores.py": "what obstore says of an object",
    "torch_modules/archives.py": "what torch.export keeps of a node",
    "torch_modules/exporting.py": "what torch.export keeps of a node, and Python of a frame",
    "torch_modules/folders.py": "the configuration that transformers writes",
    "timing/earlier_results.py": "what segdeploy 0.1 wrote",
    "timing/machine.py": "the kernel's control groups",
    "timing/results.py": "which version of segdeploy wrote a file, before it is read as that",
}

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
    names.remove("segdeploy.__main__")
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def parsed() -> Iterator[tuple[Path, ast.Module]]:
    """Every file of the package, its path below the package's folder."""
    for path in sorted(ROOT.rglob("*.py")):
        yield path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8"))


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path, tree in parsed():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path}:{node.lineno} {node.name}", node


def lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Source lines, decorators and docstring included."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return (node.end_lineno or first) - first + 1


def test_functions_are_short() -> None:
    """Half of them fit a glance, nine in ten a screen, as in the packages that read best; none is over 50 lines."""
    found = sorted(((lines_of(node), where) for where, node in functions()), reverse=True)
    longest = "\n".join(f"{lines:4} {where}" for lines, where in found[:15])
    counts = [lines for lines, _ in found]
    assert len(counts) > 100
    assert statistics.median(counts) <= MEDIAN_LINES, longest
    assert sum(lines < MOST_LINES for lines in counts) >= MOST * len(counts), longest
    assert max(counts) <= LONGEST_FUNCTION, longest


def test_files_are_read_in_one_sitting() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_bytes().splitlines()) for path in ROOT.rglob("*.py")}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_functions_have_few_parameters() -> None:
    """A command has as many as it has options; everything else groups them in a type."""
    found = {}
    for where, node in functions():
        is_command = where.startswith("cli/commands/")
        count = len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs)
        if count > MOST_PARAMETERS and not is_command:
            found[where] = count
    assert found == {}


def test_no_private_module_is_imported_from_another_package() -> None:
    found = [
        f"{path}: {name}"
        for path, tree in parsed()
        for name in imported(tree)
        if (owner := private_owner(name)) is not None and not f"{package_of(path)}.".startswith(f"{owner}.")
    ]
    assert found == []


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def private_owner(name: str) -> str | None:
    """The package whose private module a name lies in; `segdeploy._version` is everybody's."""
    parts = name.split(".")
    private = [index for index, part in enumerate(parts) if part.startswith("_") and not part.startswith("__")]
    if parts[0] != "segdeploy" or not private or parts[1] == "_version":
        return None
    return ".".join(parts[: private[0]])


def package_of(path: Path) -> str:
    return ".".join(("segdeploy", *path.parent.parts))


def test_no_dictionary_is_read_by_string_key_across_modules() -> None:
    """A mistyped key is found by whoever runs it; a mistyped attribute by mypy. Own dictionaries stay in their file."""
    found = {}
    for path, tree in parsed():
        foreign = read_keys(tree) - written_keys(tree)
        if foreign and str(path) not in FOREIGN_FORMATS:
            found[str(path)] = sorted(foreign)
    assert found == {}


def test_the_rule_about_string_keys_sees_a_planted_read() -> None:
    """A rule that finds nothing anywhere proves nothing."""
    planted = ast.parse('def f(report):\n    return report["passed"], report.get("stages"), {"own": 1}["own"]')
    assert read_keys(planted) - written_keys(planted) == {"passed", "stages"}


def read_keys(tree: ast.Module) -> set[str]:
    """String keys that are read by subscript, `get` or `pop`; types (`Literal["a"]`) and the environment apart."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and not is_type(node.value):
            found.add(constant(node.slice))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            is_read = node.func.attr in {"get", "pop"} and ast.unparse(node.func.value) != "os.environ"
            found |= {constant(node.args[0])} if is_read else set()
    return found - {None}  # type: ignore[return-value] # the rest is text


def written_keys(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            found |= {constant(key) for key in node.keys}
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            found.add(constant(node.slice))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
            found |= {keyword.arg for keyword in node.keywords}
    return found - {None}  # type: ignore[return-value] # the rest is text


def constant(node: ast.expr | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def is_type(node: ast.expr) -> bool:
    name = ast.unparse(node).rpartition(".")[2]
    return name[:1].isupper() or name in {"list", "dict", "tuple", "set", "type", "frozenset", "defaultdict"}


def imported_without(blocked: str, names: str = "") -> int:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, blocked, names], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_every_module_imports_without_the_runtimes() -> None:
    """A machine has the one it needs."""
    modules = sum(path.name not in {"__init__.py", "__main__.py"} for path in ROOT.rglob("*.py"))
    assert imported_without(RUNTIMES) >= modules


def test_what_runs_an_engine_imports_without_a_framework() -> None:
    """A GPU host that only infers has neither torch nor onnx."""
    assert imported_without(FRAMEWORKS, WITHOUT_FRAMEWORKS) == len(WITHOUT_FRAMEWORKS.split())
