"""What every network promises, over `models.names()`: a new file is tested because it exists."""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from segdeploy import blocks, models
from segdeploy.blocks import ConvNorm, Network
from segdeploy.errors import InvalidRequestError
from segdeploy.models import _resnet, deeplabv3, pspnet, unet
from segdeploy.spec import Spec

CLASSES = 3
NARROW = 0.125
FOLDED = 1e-13  # of the largest logit, in float64; 8e-15 was measured
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in models.names()),
    ("segnet", {"ceil_mode": False}),
    ("segnet", {"form": "basic"}),
    ("unet", {"form": "paper"}),
    ("pspnet", {"depth": 18}),
    ("pspnet", {"auxiliary": True}),
    ("deeplabv3", {"output_stride": 8, "stem": "deep"}),
    ("deeplabv3", {"output_stride": 32}),
    ("deeplabv3", {"head": "torchvision", "auxiliary": True}),
]
every_network = pytest.mark.parametrize(
    "name, variant", VARIANTS, ids=["-".join([name, *(f"{k}={v}" for k, v in v.items())]) for name, v in VARIANTS]
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """These networks are so narrow that a second thread only costs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def narrow(name: str, **variant: Any) -> Network:  # noqa: ANN401 - what `build` takes
    torch.manual_seed(0)
    return models.build(name, CLASSES, **{"multiplier": NARROW, **variant})


def with_statistics(network: Network) -> Network:
    """As after training: every normalisation has moments and gains of its own."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return network.eval()


def accepted(network: Network, height: int, width: int) -> tuple[int, int]:
    """The size itself or, where the network refuses it, the size it names instead."""
    try:
        network.check_size(height, width)
    except InvalidRequestError as error:
        height, width = map(int, error.remedy.partition("--size ")[2].split()[0].rstrip(".").split("x"))
        network.check_size(height, width)
    return height, width


def image(height: int, width: int, *, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(2))


@every_network
@pytest.mark.parametrize("height, width", [(64, 48), (37, 50)], ids=["even", "odd"])
def test_logits_have_the_size_of_the_image_less_the_margin(
    name: str, variant: dict[str, Any], height: int, width: int
) -> None:
    """The class map is laid over the photo: a row more or less shifts every mask."""
    network = narrow(name, **variant).eval()
    height, width = accepted(network, height, width)
    with torch.inference_mode():
        logits = network(image(height, width, batch=2))
    assert logits.shape == (2, CLASSES, height - 2 * network.margin, width - 2 * network.margin)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@every_network
def test_every_parameter_learns(name: str, variant: dict[str, Any]) -> None:
    """A branch left out of `forward` trains nothing and still counts, exports and ships."""
    network = narrow(name, **variant).train()
    height, width = accepted(network, 64, 64)
    logits, auxiliary = network.forward_with_auxiliary(image(height, width, batch=2))
    target = torch.randint(CLASSES, (2, *logits.shape[2:]), generator=torch.Generator().manual_seed(3))
    loss = sum(F.cross_entropy(each, target) for each in (logits, auxiliary) if each is not None)
    assert isinstance(loss, Tensor)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    weights = {name: gradient for name, gradient in gradients.items() if gradient is not None and gradient.dim() > 1}
    assert [name for name, gradient in weights.items() if not (gradient.isfinite().all() and gradient.any())] == []


@every_network
def test_a_spec_and_a_file_rebuild_the_network(name: str, variant: dict[str, Any]) -> None:
    """Spec and tensors, as bytes, are all that a checkpoint holds."""
    network = with_statistics(narrow(name, **variant))
    names = tuple(f"class_{index}" for index in range(CLASSES))
    colours = ((0, 0, 0),) * CLASSES
    spec = Spec(name, {**variant, "multiplier": NARROW}, names, colours, 64, 64, margin=network.margin)
    again = models.rebuild(Spec.from_json(spec.to_json())).eval()
    again.load_state_dict(load(save(network.state_dict())))
    height, width = accepted(network, 64, 64)
    with torch.inference_mode():
        x = image(height, width)
        assert torch.equal(again(x), network(x))
    assert again.margin == spec.margin


@every_network
def test_folding_the_normalisation_leaves_the_logits(name: str, variant: dict[str, Any]) -> None:
    """The exported graph holds the folded convolutions; in float64 nothing but rounding may differ."""
    network = with_statistics(narrow(name, **variant)).double()
    height, width = accepted(network, 64, 48)
    x = image(height, width).double()
    with torch.inference_mode():
        before = network(x)
        blocks.fold_normalisation(network)
        after = network(x)
    assert (after - before).abs().max() <= FOLDED * before.abs().max()
    assert not [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("bias", [False, True])
def test_folding_uses_moments_gain_and_shift(*, bias: bool) -> None:
    """One channel by hand: W' = W s and b' = (b - mean) s + beta, with s = gamma / sqrt(var + eps)."""
    block = ConvNorm(1, 1, 1, bias=bias, relu=False).double().eval()
    conv, norm = block.get_submodule("conv"), block.get_submodule("norm")
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    values = {"weight": 3.0, "bias": 0.5, "running_mean": 2.0, "running_var": 4.0 - norm.eps}
    norm.load_state_dict({name: torch.full((1,), value) for name, value in values.items()}, strict=False)
    conv.load_state_dict({"weight": torch.full((1, 1, 1, 1), 5.0), **({"bias": torch.ones(1)} if bias else {})})
    block.fold()
    assert conv.bias is not None
    torch.testing.assert_close(conv.weight.flatten().tolist(), [5.0 * 1.5])
    torch.testing.assert_close(conv.bias.tolist(), [(float(bias) - 2.0) * 1.5 + 0.5])


@pytest.mark.parametrize("name", models.names())
def test_an_unknown_option_names_the_known_ones(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="no option colour") as caught:
        models.build(name, CLASSES, colour="blue")
    assert all(option in caught.value.remedy for option in models.defaults(name))


@pytest.mark.parametrize("option", ["classes", "name"])
def test_a_parameter_of_build_is_no_option(option: str) -> None:
    """`--option classes=3` is a plausible guess; the classes come from the masks."""
    with pytest.raises(InvalidRequestError, match=f"no option {option}"):
        models.build("unet", CLASSES, **{option: 3})


@pytest.mark.parametrize(
    "name, option, value",
    [
        ("pspnet", "auxiliary", "no"),
        ("segnet", "ceil_mode", 0),
        ("segnet", "form", 1),
        ("unet", "multiplier", "half"),
        ("unet", "multiplier", True),
        ("deeplabv3", "depth", 50.5),
        ("pspnet", "depth", [50]),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(name: str, option: str, value: object) -> None:
    """`--option auxiliary=no` is text, and text is true: it would build what was declined."""
    with pytest.raises(InvalidRequestError, match=f"{option}=") as caught:
        models.build(name, CLASSES, **{option: value})
    assert f"{option}={json.dumps(models.defaults(name)[option])}" in caught.value.remedy


@pytest.mark.parametrize(
    "name, option, value",
    [
        ("segnet", "form", "large"),
        ("unet", "form", "valid"),
        ("pspnet", "depth", 77),
        ("deeplabv3", "depth", 77),
        ("deeplabv3", "output_stride", 4),
        ("deeplabv3", "head", "smp"),
        ("deeplabv3", "stem", "3x3"),
        *((name, "multiplier", value) for name in models.names() for value in (0, -1.0, float("nan"), float("inf"))),
    ],
)
def test_a_value_out_of_range_names_the_choices(name: str, option: str, value: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        models.build(name, CLASSES, **{option: value})
    assert str(value) in caught.value.what
    assert re.match("Choose|Give", caught.value.remedy)


@pytest.mark.parametrize("call", [models.require, models.defaults, models.description, models.load])
def test_an_unknown_network_names_the_known_ones(call: Any) -> None:  # noqa: ANN401 - any of the four
    with pytest.raises(InvalidRequestError, match="'alexnet'") as caught:
        call("alexnet")
    assert all(name in caught.value.remedy for name in models.names())


def test_an_underscored_file_is_no_network() -> None:
    assert models.names() == ["deeplabv3", "pspnet", "segnet", "unet"]


@pytest.mark.parametrize("name", models.names())
def test_the_defaults_are_those_of_the_function(name: str) -> None:
    """They are read from the source, so that a machine without torch can list them."""
    assert models.defaults(name) == models.load(name).build.__kwdefaults__
    assert models.description(name)


def test_a_multiplier_of_one_is_the_paper_and_others_go_in_steps_of_eight() -> None:
    assert [blocks.scaled(48, multiplier) for multiplier in (1, 0.5, 0.17, 0.01, 1.5)] == [48, 24, 8, 8, 72]
    assert blocks.scaled(21, 1) == 21


@pytest.mark.parametrize("side, expected", [(572, 388), (188, 4)])
def test_the_u_net_of_the_paper_gives_its_sizes(side: int, expected: int) -> None:
    """Figure 1, and the smallest tile whose every pooled map is even."""
    network = narrow("unet", form="paper").eval()
    network.check_size(side, side)
    with torch.inference_mode():
        assert network(image(side, side)).shape == (1, CLASSES, expected, expected)


def test_the_u_net_of_the_paper_names_the_next_size_it_takes() -> None:
    network = narrow("unet", form="paper")
    with pytest.raises(InvalidRequestError, match="360x480") as caught:
        network.check_size(360, 480)
    assert "364x492" in caught.value.remedy
    with pytest.raises(InvalidRequestError) as caught:
        network.check_size(32, 600)
    assert "188x604" in caught.value.remedy


@pytest.mark.parametrize("side", range(188, 260))
def test_exactly_the_sizes_with_even_maps_are_accepted(side: int) -> None:
    """The rule 16k + 60 against the walk down: two 3x3, then halve; four times."""
    walk = side
    even = True
    for _ in range(4):
        walk -= 4
        even &= walk % 2 == 0
        walk //= 2
    if even:
        narrow("unet", form="paper").check_size(side, side)
    else:
        with pytest.raises(InvalidRequestError):
            narrow("unet", form="paper").check_size(side, side)


@pytest.mark.parametrize(
    "name, variant, least",
    [("segnet", {"ceil_mode": False}, 32), ("segnet", {"form": "basic", "ceil_mode": False}, 16), ("unet", {}, 16)],
)
def test_the_least_size_works_and_one_pixel_less_is_refused(name: str, variant: dict[str, Any], least: int) -> None:
    """Below it a map has no pixel left."""
    network = narrow(name, **variant).eval()
    with torch.inference_mode():
        assert network(image(least, least)).shape == (1, CLASSES, least, least)
    with pytest.raises(InvalidRequestError, match=f"at least {least}x{least}"):
        network.check_size(least - 1, 100)


@pytest.mark.parametrize("ceil_mode, deepest", [(True, (12, 15)), (False, (11, 15))])
def test_segnets_deepest_map_follows_the_rounding(*, ceil_mode: bool, deepest: tuple[int, int]) -> None:
    """360x480 in Caffe gives 12x15, in most PyTorch ports 11x15; weights of one are not right in the other."""
    network = narrow("segnet", ceil_mode=ceil_mode).eval()
    seen: list[torch.Size] = []
    network.get_submodule("pool").register_forward_hook(lambda _module, _inputs, out: seen.append(out[0].shape))
    with torch.inference_mode():
        network(image(360, 480))
    assert seen[-1][2:] == deepest
    assert [tuple(shape[2:]) for shape in seen[:3]] == [(180, 240), (90, 120), (45, 60)]


def test_segnet_basics_decoder_has_no_relu() -> None:
    network = narrow("segnet", form="basic")
    sides = [network.get_submodule(side) for side in ("encoder", "decoder")]
    assert [sum(isinstance(module, nn.ReLU) for module in side.modules()) for side in sides] == [4, 0]


def trunk_of(name: str, **variant: Any) -> _resnet.ResNet:  # noqa: ANN401 - what `build` takes
    with torch.device("meta"):
        trunk = models.build(name, CLASSES, **variant).get_submodule("trunk")
    assert isinstance(trunk, _resnet.ResNet)
    return trunk


def rates(trunk: _resnet.ResNet, stage: int) -> list[int]:
    """The dilation of the stage's 3x3 convolutions, and a check that their padding keeps the size."""
    convolutions = [conv for conv in trunk.get_submodule(f"layer{stage}").modules() if isinstance(conv, nn.Conv2d)]
    three = [conv for conv in convolutions if conv.kernel_size == (3, 3)]
    assert all(conv.padding == conv.dilation for conv in three)
    return [conv.dilation[0] for conv in three]


def strides(trunk: _resnet.ResNet) -> list[tuple[str, int]]:
    """Every convolution below the stem that steps over pixels."""
    found = [(name, conv) for name, conv in trunk.named_modules() if isinstance(conv, nn.Conv2d) and "layer" in name]
    return [(name, conv.stride[0]) for name, conv in found if conv.stride != (1, 1)]


def test_pspnet_dilates_the_first_block_of_a_stage_too() -> None:
    """As semseg and Caffe do; torchvision does not, and no key of the checkpoint tells."""
    trunk = trunk_of("pspnet")
    assert [rates(trunk, stage) for stage in (1, 2, 3, 4)] == [[1] * 3, [1] * 4, [2] * 6, [4] * 3]


def test_torchvisions_first_block_keeps_the_rate_of_the_stage_before() -> None:
    trunk = trunk_of("deeplabv3", head="torchvision")
    assert [rates(trunk, stage) for stage in (2, 3, 4)] == [[1] * 4, [1, 2, 2, 2, 2, 2], [2, 4, 4]]


@pytest.mark.parametrize(
    "stride, layer3, layer4, pyramid",
    [(16, [1] * 6, [2, 4, 8], [6, 12, 18]), (8, [2] * 6, [4, 8, 16], [12, 24, 36])],
)
def test_multi_grid_multiplies_and_output_stride_8_doubles_every_rate(
    stride: int, layer3: list[int], layer4: list[int], pyramid: list[int]
) -> None:
    """Sections 3.2 and 3.3: (1, 2, 4) times the stage's rate; ASPP's rates double with the resolution."""
    with torch.device("meta"):
        network = models.build("deeplabv3", CLASSES, output_stride=stride)
    trunk = network.get_submodule("trunk")
    assert isinstance(trunk, _resnet.ResNet)
    assert (rates(trunk, 3), rates(trunk, 4)) == (layer3, layer4)
    branches = [conv for conv in network.get_submodule("aspp.atrous").modules() if isinstance(conv, nn.Conv2d)]
    assert [conv.dilation[0] for conv in branches] == [conv.padding[0] for conv in branches] == pyramid


def test_torchvisions_head_has_the_rates_of_output_stride_8() -> None:
    with torch.device("meta"):
        network = models.build("deeplabv3", CLASSES, head="torchvision")
    branches = [conv for conv in network.get_submodule("aspp.atrous").modules() if isinstance(conv, nn.Conv2d)]
    assert [conv.dilation[0] for conv in branches] == [12, 24, 36]


@pytest.mark.parametrize("name", ["pspnet", "deeplabv3"])
def test_the_stride_stands_in_the_3x3(name: str) -> None:
    """One PSPNet prototxt has it in the 1x1 before; semseg and torchvision have it here."""
    expected = [f"layer{stage}.0.{conv}.conv" for stage in (2, 3) for conv in ("conv2", "shortcut")]
    steps = expected if name == "deeplabv3" else expected[:2]  # PSPNet is at stride 8 from layer2 on
    assert strides(trunk_of(name)) == [(name, 2) for name in steps]


@pytest.mark.parametrize(
    "name, variant, side, expected",
    [
        ("pspnet", {}, (473, 713), (60, 90)),
        ("deeplabv3", {"output_stride": 8}, (513, 512), (65, 64)),
        ("deeplabv3", {"output_stride": 16}, (513, 512), (33, 32)),
        ("deeplabv3", {"output_stride": 16}, (360, 480), (23, 30)),
        ("deeplabv3", {"output_stride": 32}, (512, 480), (16, 15)),
        ("deeplabv3", {"output_stride": 16, "stem": "deep"}, (513, 360), (33, 23)),
        ("deeplabv3", {"head": "torchvision"}, (360, 480), (45, 60)),
        ("pspnet", {"depth": 34}, (360, 480), (45, 60)),
    ],
)
def test_the_last_map_has_the_size_of_the_output_stride(
    name: str, variant: dict[str, Any], side: tuple[int, int], expected: tuple[int, int]
) -> None:
    trunk = trunk_of(name, **variant)
    middle, deep = trunk(torch.empty(1, 3, *side, device="meta"))
    assert deep.shape == (1, trunk.channels[1], *expected)
    assert middle.shape[1] == trunk.channels[0]


def test_pspnets_stem_is_deep_and_deeplabs_is_7x7() -> None:
    stems = [[m for m in trunk_of(name).stem.modules() if isinstance(m, nn.Conv2d)] for name in ("pspnet", "deeplabv3")]
    assert [[(conv.kernel_size[0], conv.out_channels, conv.stride[0]) for conv in stem] for stem in stems] == [
        [(3, 64, 2), (3, 64, 1), (3, 128, 1)],
        [(7, 64, 2)],
    ]


def test_the_pyramid_is_concatenated_as_x_1_2_3_6() -> None:
    """Caffe has it the other way round: weights of one are noise in the other."""
    torch.manual_seed(0)
    pyramid = pspnet.PyramidPooling(8, 4, align_corners=True).double().eval()
    x = torch.randn(2, 8, 13, 17, dtype=torch.float64)
    pooled = [
        F.interpolate(level(F.adaptive_avg_pool2d(x, bins)), (13, 17), mode="bilinear", align_corners=True)
        for bins, level in zip((1, 2, 3, 6), pyramid.levels, strict=True)
    ]
    torch.testing.assert_close(pyramid(x), torch.cat([x, *pooled], dim=1), rtol=1e-12, atol=1e-12)


def test_u_nets_concatenations_are_skip_first_and_the_papers_upsampled_first() -> None:
    """Both orders are in use, and a checkpoint does not say which it has."""
    padded, paper = narrow("unet").eval(), narrow("unet", form="paper").eval()
    for network, upsampled_half in ((padded, 1), (paper, 0)):
        seen: list[Tensor] = []
        rise, up = network.get_submodule("rise.3"), network.get_submodule("up.3")
        assert isinstance(rise, nn.ConvTranspose2d)
        nn.init.zeros_(rise.weight)
        nn.init.constant_(rise.bias, 7.0) if rise.bias is not None else None
        up.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        with torch.inference_mode():
            network(image(188, 188))
        sevens = [bool((half == 7.0).all()) for half in seen[0].chunk(2, dim=1)]
        assert sevens == [index == upsampled_half for index in range(2)]


def test_the_cropped_skip_of_the_paper_is_its_centre() -> None:
    """Offsets 4, 16, 40 and 88 for a 572 tile, from figure 1."""
    for wide, slim, offset in ((64, 56, 4), (136, 104, 16), (280, 200, 40), (568, 392, 88)):
        skip = torch.arange(wide * wide).reshape(1, 1, wide, wide)
        cropped = unet._cropped_to(skip, torch.empty(1, 1, slim, slim))  # noqa: SLF001 - the offsets have no other sign
        assert cropped.shape[2:] == (slim, slim)
        assert cropped[0, 0, 0, 0] == offset * wide + offset


@pytest.mark.parametrize("name", ["pspnet", "deeplabv3"])
def test_auxiliary_logits_come_only_where_asked_for(name: str) -> None:
    """Training reads them; what is deployed computes neither the head nor its weights."""
    plain, helped = narrow(name).eval(), narrow(name, auxiliary=True).eval()
    x = image(40, 48)
    with torch.inference_mode():
        assert plain.forward_with_auxiliary(x)[1] is None
        logits, auxiliary = helped.forward_with_auxiliary(x)
        assert auxiliary is not None
        assert auxiliary.shape == logits.shape
        assert torch.equal(helped(x), logits)
        assert not torch.equal(auxiliary, logits)
    extra = set(helped.state_dict()) - set(plain.state_dict())
    assert extra
    assert all(key.startswith("auxiliary.") for key in extra)


@pytest.mark.parametrize("name", [name for name in models.names() if "auxiliary" not in models.defaults(name)])
def test_a_network_without_the_option_has_no_auxiliary_logits(name: str) -> None:
    network = narrow(name).eval()
    x = image(*accepted(network, 32, 32))
    with torch.inference_mode():
        logits, auxiliary = network.forward_with_auxiliary(x)
        assert auxiliary is None
        assert torch.equal(logits, network(x))


def test_torchvisions_interpolation_is_half_pixel_and_the_others_align_corners() -> None:
    """One pixel of logits at the border tells: aligned corners keep it, half pixels repeat it outwards."""
    wanted = {("pspnet", ()): True, ("deeplabv3", ()): True, ("deeplabv3", (("head", "torchvision"),)): False}
    for (name, variant), align_corners in wanted.items():
        network = narrow(name, **dict(variant)).eval()
        assert isinstance(network, _resnet.DilatedNetwork)
        x = image(65, 49)
        with torch.inference_mode():
            coarse = network.decode(network.trunk(x)[1])
            expected = F.interpolate(coarse, (65, 49), mode="bilinear", align_corners=align_corners)
            torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-5)


def test_torchvisions_head_has_one_3x3_more_than_the_papers() -> None:
    heads = [narrow("deeplabv3", head=head).get_submodule("refine") for head in ("paper", "torchvision")]
    assert [sum(isinstance(module, nn.Conv2d) for module in head.modules()) for head in heads] == [0, 1]


@pytest.mark.parametrize("align_corners", [True, False])
def test_aspps_image_pooling_is_an_interpolated_pixel(*, align_corners: bool) -> None:
    """Expanding one pixel is what interpolation gives under either convention, without the Resize."""
    torch.manual_seed(0)
    aspp = deeplabv3.AtrousSpatialPyramidPooling(16, 8, (1, 2, 3), projection=1).eval()
    x = torch.randn(2, 16, 9, 7)
    with torch.inference_mode():
        pixel = aspp.image(F.adaptive_avg_pool2d(x, 1))
        mean = F.interpolate(pixel, (9, 7), mode="bilinear", align_corners=align_corners)
        branches = [aspp.point(x), *(branch(x) for branch in aspp.atrous), mean]
        torch.testing.assert_close(aspp(x), aspp.project(torch.cat(branches, dim=1)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["full", "basic"])
def test_a_moved_maximum_is_felt_no_further_than_is_said(form: str) -> None:
    """The proof excuses pixels in the reach of a tied pooling: none may change beyond it, and it may not be vast.

    It is up to a window more than the convolutions see: pooled maps are stretched over images they do not divide.
    """
    network = with_statistics(narrow("segnet", form=form)).double()
    reaches = network.pooling_reaches()
    assert len(reaches) == {"full": 5, "basic": 4}[form]
    x = image(256, 256).double()
    with torch.inference_mode():
        before = network(x)
        for level, reach in enumerate(reaches):
            window = 2 ** (level + 1)
            changed = (with_moved_maximum(network, level, x) - before).abs().amax(dim=(0, 1)).nonzero()
            felt = max(int(128 - changed.min()), int(changed.max() - (128 + window - 1)))
            assert 0 < felt <= reach < felt + window, level


def with_moved_maximum(network: Network, level: int, x: Tensor) -> Tensor:
    """Logits where one window in the middle of pool `level` has its maximum at another position."""
    calls = itertools.count()

    def move(_module: nn.Module, _inputs: object, out: tuple[Tensor, tuple[Tensor, ...]]) -> None:
        if next(calls) == level:
            _, winners = out
            row, column = (side // 2 for side in winners[2].shape[2:])
            winners[2][..., row, column] ^= True

    hook = network.get_submodule("pool").register_forward_hook(move)
    try:
        logits: Tensor = network(x)
        return logits
    finally:
        hook.remove()
