"""Write the signatures of `import segdeploy` into docs/python.md; a test holds the page and the code together."""

import ast
import dataclasses
import inspect
import textwrap
from pathlib import Path
from typing import Any

import segdeploy

PAGE = Path(__file__).parent / "python.md"
BEGIN, END = "<!-- signatures: written by `make docs` -->\n", "<!-- end of the signatures -->\n"


def page(text: str) -> str:
    """The page with the signatures of today."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{_signatures()}{END}{after}"


def _signatures() -> str:
    offered = {name: getattr(segdeploy, name) for name in segdeploy.__all__}
    functions = [_function(name, value) for name, value in offered.items() if not inspect.isclass(value)]
    types = [_type(name, value) for name, value in offered.items() if inspect.isclass(value)]
    about = "`File` is `str | os.PathLike[str]`, `Folder` is `File | DataFolder`; `...`: an object.\n"
    return "\n".join([f"\n### Functions\n\n{about}", *functions, "### Types\n", *types])


def _function(name: str, function: Any) -> str:  # noqa: ANN401 - any function
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(node, ast.FunctionDef)  # noqa: S101 - it is the source of one
    positional, named = [_annotated(argument) for argument in node.args.args], []
    first = len(positional) - len(node.args.defaults)
    for index, default in enumerate(node.args.defaults):
        positional[first + index] += f" = {_default(default)}"
    for argument, value in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        named.append(_annotated(argument) + ("" if value is None else f" = {_default(value)}"))
    parameters = [*positional, "*", *named] if named else positional
    returns = "" if node.returns is None else _plain(node.returns)
    listed = ",\n    ".join(parameters)
    line = f"{name}(\n    {listed},\n) -> {returns}" if named else f"{name}({', '.join(parameters)}) -> {returns}"
    return f"```\n{line}\n```\n\n{inspect.cleandoc(function.__doc__ or '')}\n"


def _annotated(argument: ast.arg) -> str:
    return argument.arg if argument.annotation is None else f"{argument.arg}: {_plain(argument.annotation)}"


def _plain(node: ast.expr) -> str:
    return ast.unparse(node).replace("'", "").replace('"', "")


def _default(node: ast.expr) -> str:
    """Literals as they stand; what is an object elsewhere as `...`."""
    text = ast.unparse(node)
    return text if isinstance(node, ast.Constant | ast.Tuple) else "..." if text != "silent" else "silent"


def _type(name: str, kind: Any) -> str:  # noqa: ANN401 - any class
    fields = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    listed = f"\n\nFields: {', '.join(f'`{field}`' for field in fields)}." if fields else ""
    return f"**{name}**: {inspect.cleandoc(kind.__doc__ or '')}{listed}\n"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
