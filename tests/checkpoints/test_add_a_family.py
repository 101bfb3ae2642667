"""A further family is one new file: the one of docs/add-a-checkpoint-family.md, taken from the page as it stands."""

import re
from pathlib import Path

import foreign_networks as theirs
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import segdeploy
from segdeploy.checkpoints import families
from segdeploy.errors import InvalidFileError

PAGE = Path(__file__).parents[2] / "docs" / "add-a-checkpoint-family.md"
COUNTS = (2, 2, 3, 3, 3)


class PortedSegNet(nn.Module):
    """Eight channels where the paper has 64; pooling rounds down."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = [8 * min(2**stage, 8) for stage in range(5)]
        inputs = 3
        for stage, count in enumerate(COUNTS, start=1):
            for place in range(1, count + 1):
                self._layer(f"En{stage}{place}", inputs, widths[stage - 1])
                inputs = widths[stage - 1]
        for stage in range(5, 0, -1):
            for place in range(COUNTS[stage - 1], 0, -1):
                outputs = widths[stage - 1] if place > 1 else widths[stage - 2] if stage > 1 else classes
                self._layer(f"De{stage}{place}", inputs, outputs)
                inputs = outputs

    def _layer(self, name: str, inputs: int, outputs: int) -> None:
        self.add_module(f"Conv{name}", nn.Conv2d(inputs, outputs, 3, padding=1))
        self.add_module(f"BN{name}", nn.BatchNorm2d(outputs))

    def _run(self, name: str, x: Tensor) -> Tensor:
        return F.relu(self.get_submodule(f"BN{name}")(self.get_submodule(f"Conv{name}")(x)))

    def forward(self, x: Tensor) -> Tensor:
        pooled = []
        for stage, count in enumerate(COUNTS, start=1):
            for place in range(1, count + 1):
                x = self._run(f"En{stage}{place}", x)
            size = x.shape[2:]
            x, places = F.max_pool2d(x, 2, 2, return_indices=True)
            pooled.append((places, size))
        for stage in range(5, 0, -1):
            places, size = pooled.pop()
            x = F.max_unpool2d(x, places, [2, 2], [2, 2], output_size=size)
            for place in range(COUNTS[stage - 1], 0 if stage > 1 else 1, -1):
                x = self._run(f"De{stage}{place}", x)
        logits: Tensor = self.get_submodule("ConvDe11")(x)
        return logits


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The network whose weights lie in ported.pth of the working directory."""
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: nn.Module = theirs.with_statistics(PortedSegNet(4))
    torch.save(network.state_dict(), "ported.pth")
    return network


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new file lies in a folder that the package counts as its own."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "ported_segnet.py").write_text(code)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(folder)])


@pytest.mark.usefixtures("family")
def test_its_checkpoints_are_taken_because_it_is_there(saved: nn.Module) -> None:
    assert "ported_segnet" in families.names()
    report = segdeploy.import_checkpoint("ported.pth", name="ported")
    assert report.keys.family == "SegNet in PyTorch"
    assert report.keys.assumed == {"ceil_mode": False}
    assert all(name.startswith("BNDe11.") for name in report.keys.left_over)
    ours = segdeploy.network(report.checkpoint)
    for size in ((64, 64), (45, 71)):
        x = torch.randn(1, 3, *size)
        with torch.inference_mode():
            expected = saved(x)
            torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.usefixtures("saved")
def test_without_it_they_are_refused() -> None:
    with pytest.raises(InvalidFileError, match="a network unknown here"):
        segdeploy.import_checkpoint("ported.pth", name="ported")
