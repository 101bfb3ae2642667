"""The documents say what the commands do today."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import foreign_graphs
import foreign_networks as theirs
import pytest
import torch
import torch_networks
from conftest import photographs

ROOT = Path(__file__).parents[1]
COMMAND = re.compile(r"^\$ (segdeploy .*)$", re.MULTILINE)


def test_the_page_of_the_command_line_is_the_help() -> None:
    """`make docs` writes it."""
    spec = importlib.util.spec_from_file_location("write_cli", ROOT / "docs" / "write_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == module.page()


@pytest.mark.slow
def test_the_commands_of_the_readme_run_as_written(tmp_path: Path) -> None:
    """In the order of the page, in a folder with photographs in ./images and six of the examples."""
    commands = COMMAND.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert {
        "segdeploy export --model segnet",
        "segdeploy bench --engine fp32",
        "segdeploy infer ./images --overlay",
    } <= set(commands)
    nuclei, few = ROOT / "examples" / "nuclei", tmp_path / "examples" / "nuclei"
    names = (nuclei / "val.txt").read_text(encoding="utf-8").split()[:6]
    for folder in ("images", "masks"):
        (few / folder).mkdir(parents=True)
        for name in names:
            shutil.copy(nuclei / folder / name, few / folder)
    (few / "val.txt").write_text("\n".join(names), encoding="utf-8")
    shutil.copytree(few / "images", tmp_path / "images")
    program = str(Path(sys.executable).with_name("segdeploy"))
    for command in commands:
        done = subprocess.run(
            [program, *shlex.split(command)[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"


@pytest.mark.slow
def test_the_commands_of_the_page_on_own_networks_run_as_written(tmp_path: Path) -> None:
    """In the order of the page, on narrow networks under the names of the page."""
    commands = COMMAND.findall((ROOT / "docs" / "own-network.md").read_text(encoding="utf-8"))
    assert {command.split()[1] for command in commands} == {"adopt", "import", "export", "infer", "parity"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        deeplabv3 = theirs.with_statistics(theirs.TorchvisionDeepLabV3(21))
        pspnet = theirs.with_statistics(theirs.MmSegmentor(19, 18, "psp"))
        unet = theirs.with_statistics(theirs.MilesialUNet(2, 3, bilinear=False))
    torch.save({"model": deeplabv3.state_dict(), "epoch": 29}, tmp_path / "deeplabv3_resnet50_coco.pth")
    torch.save({"meta": {"epoch": 1}, "state_dict": pspnet.state_dict()}, tmp_path / "pspnet_r18-d8.pth")
    torch.save(unet.state_dict(), tmp_path / "unet_carvana.pth")
    photographs(tmp_path / "photos", "images/0.png", "images/1.png")
    foreign_graphs.decided_by_red(tmp_path / "theirs.onnx")
    foreign_graphs.labelled_by_red(tmp_path / "labelled")
    shutil.copy(torch_networks.__file__, tmp_path / "theirs.py")
    with (tmp_path / "theirs.py").open("a", encoding="utf-8") as file:
        file.write("\n\ndef build() -> nn.Module:\n    return Small()\n")
    torch.save({"model": torch_networks.built(torch_networks.Small).state_dict()}, tmp_path / "theirs.pth")
    program = str(Path(sys.executable).with_name("segdeploy"))
    for command in commands:
        done = subprocess.run(
            [program, *shlex.split(command)[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")):
        prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#]+)\)", prose):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page}: {target}"
