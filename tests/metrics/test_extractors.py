"""Each feature space against an implementation that is not ours, and its promises to all of them.

Weights are made here, so nothing is downloaded. N images, E features.
"""

from __future__ import annotations

import copy
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.image.fid import NoTrainInceptionV3

import toy
from salon.metrics import extractors
from salon.metrics.distances import URL, WEIGHTS
from salon.metrics.extractor import Extractor

pytestmark = pytest.mark.usefixtures("one_thread")
DINO = "vit_small_patch14_dinov2"


def pictures(*, side: int = 32, count: int = 3, seed: int = 0) -> Tensor:
    """Patches of color under noise, so that their features differ."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randint(0, 256, (count, 3, 3, 3), generator=generator)
    wide = patches.repeat_interleave(-(-side // 3), 2).repeat_interleave(-(-side // 3), 3)
    noise = torch.randint(-30, 31, (count, 3, side, side), generator=generator)
    return (wide[:, :, :side, :side] + noise).clamp(0, 255).to(torch.uint8)


def untrained() -> FeatureExtractorInceptionV3:
    """torch-fidelity's network with chance for weights, none of them at its default."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
        patch.setattr(
            "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url",
            lambda *_, **__: {},
        )
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], None)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return network


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(untrained().state_dict(), file)
    return file


@pytest.fixture(scope="module")
def dino_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it is published: for 37 x 37 patches."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("dino") / "weights.pth"
    network = timm.create_model(DINO, num_classes=0)
    torch.save(network.state_dict(), file)
    return file


class Domain(nn.Module):
    """A network of somebody else's, with parts that act differently in training."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.drop = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5)

    def features(self, images: Tensor) -> Tensor:
        return self.drop(self.norm(self.conv(images)).mean((2, 3)))


MAKERS: dict[str, Callable[[], Extractor]] = {
    "tower": lambda: extractors.tower(tower=toy.clip()),
    "random_conv": lambda: extractors.random_conv(seed=0, features=6),
    "of": lambda: extractors.of(Domain(), "domain"),
}


@pytest.fixture(params=[*MAKERS, "inception"])
def extractor(request: pytest.FixtureRequest) -> Extractor:
    if request.param == "inception":
        file = request.getfixturevalue("inception_file")
        return extractors.inception(weights=str(file), resize="tf1")
    return MAKERS[request.param]()


# -- what all of them promise ------------------------------------------------------------------


def test_the_same_whatever_surrounds_them(extractor: Extractor) -> None:
    images = pictures()
    plain = extractor(images)
    assert plain.shape == (len(images), extractor.num_features)
    assert plain.dtype == torch.float32
    assert plain.std(0).mean() > 1e-3  # pictures differ

    pieces = torch.cat([extractor(piece) for piece in images.split(2)])
    torch.testing.assert_close(pieces, plain, atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(extractor(images), plain)
    told = [extractor.identity]
    for module in [extractor, *extractor.modules()]:
        module.train()
    for module in extractor._weights[0].modules():
        module.training = True  # as a model that trains its tower does
    assert torch.equal(extractor(images), plain)
    assert all(module.training for module in extractor._weights[0].modules())
    assert [extractor.identity] == told


def test_no_gradients(extractor: Extractor) -> None:
    assert not [p for p in extractor.parameters() if p.requires_grad]
    extractor.requires_grad_(True)
    with torch.enable_grad():
        assert not extractor(pictures(count=1)).requires_grad


def test_full_precision_on_devices_that_round_products(
    extractor: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(*_: Any) -> None:
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))

    extractor.network.register_forward_pre_hook(look)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("medium")
    try:
        extractor(pictures(count=1))
        after = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == [("highest", False)]
    assert after == ("medium", True)


@pytest.mark.parametrize(
    "images",
    [pictures().float(), pictures()[0], pictures()[:, :1]],
    ids=["float", "one image", "gray"],
)
def test_other_images_are_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(N, 3, H, W\) was expected"):
        MAKERS["random_conv"]()(images)


@pytest.mark.parametrize("name", MAKERS)
def test_identity_is_of_the_weights(name: str) -> None:
    one, other = MAKERS[name](), MAKERS[name]()
    assert one.identity == other.identity
    assert one.identity.startswith(one.name + " " + one.resize + " float32 ")
    one(pictures(count=3))
    assert one.identity == other.identity
    with torch.no_grad():
        weight = next(iter(other._weights[0].parameters()))
        weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(9.0))
    assert one.identity != other.identity


def test_identity_knows_the_buffers() -> None:
    """Such as the mean that images are normalized by, which no checkpoint of a tower holds."""
    clip = toy.clip()
    before = extractors.tower(tower=clip).identity
    clip.image_mean += 0.1
    assert extractors.tower(tower=clip).identity != before


def test_identity_is_of_no_layout() -> None:
    extractor = MAKERS["random_conv"]()
    before = extractor.identity
    assert extractor.to(memory_format=torch.channels_last).identity == before
    assert extractor.half().identity != before


def test_the_tower_stays_where_and_as_it_is() -> None:
    clip = toy.clip().requires_grad_(True)
    extractor = extractors.tower(tower=clip)
    extractor.to("meta")
    assert extractor.device.type == "cpu"
    assert not list(extractor.parameters())
    assert all(p.requires_grad for p in clip.parameters())
    images = pictures()
    expected = clip.encode_images(images.float() / 127.5 - 1)
    torch.testing.assert_close(extractor(images), expected)


def test_random_conv_is_of_its_seed() -> None:
    one = extractors.random_conv(seed=0, features=6)
    torch.manual_seed(1)
    other = extractors.random_conv(seed=0, features=6)
    assert one.identity == other.identity
    assert one.identity != extractors.random_conv(seed=1, features=6).identity
    assert one.num_features == 6


def test_a_network_of_ones_own_sees_images_in_its_range() -> None:
    network = Domain().eval()
    images = pictures()
    expected = network.features(images.float() / 127.5 - 1)
    assert torch.equal(extractors.of(network, "domain")(images), expected)


# -- Inception ---------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [32, 350])
def test_inception_is_torch_fidelitys(inception_file: Path, side: int) -> None:
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(inception_file))
    images = pictures(side=side, count=2)
    ours = extractors.inception(weights=str(inception_file), resize="tf1")(images)
    expected = theirs(images)[0]
    assert expected.std(0).mean() > 1e-2
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("side", [32, 350])
def test_inception_is_torchmetrics(inception_file: Path, side: int) -> None:
    theirs = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(inception_file))
    images = pictures(side=side, count=2)
    extractor = extractors.inception(weights=str(inception_file), resize="antialias")
    torch.testing.assert_close(extractor(images), theirs(images), atol=1e-4, rtol=1e-5)


def test_inceptions_resize_is_in_its_identity(inception_file: Path) -> None:
    images = pictures()
    one, other = (
        extractors.inception(weights=str(inception_file), resize=rule)
        for rule in ("tf1", "antialias")
    )
    assert one.identity.split()[:3] == ["inception", "tf1-299", "float32"]
    assert one.identity.split()[3] == other.identity.split()[3]
    assert one.identity != other.identity
    assert not torch.allclose(one(images), other(images), atol=1e-2)


def test_another_resize(inception_file: Path) -> None:
    with pytest.raises(ValueError, match=r"extractor.resize='bicubic'; expected one of tf1, anti"):
        extractors.inception(weights=str(inception_file), resize="bicubic")


def test_no_file(tmp_path: Path) -> None:
    missing = str(tmp_path / "inception.pth")
    for make in (
        lambda: extractors.inception(weights=missing, resize="tf1"),
        lambda: extractors.dinov2(name=DINO, weights=missing, image_size=28),
        lambda: extractors.clip(name="ViT-B-32", weights=missing),
    ):
        with pytest.raises(ValueError, match=r"extractor.weights=.*file") as error:
            make()
        assert missing in str(error.value)


def test_no_network_for_inception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(url: str, *_: Any, **__: Any) -> None:
        asked.append(url)
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(ValueError, match=r"name resolution.*extractor.weights=PATH") as error:
        extractors.inception(weights=None, resize="tf1")
    assert asked == [URL]
    for told in (URL, WEIGHTS, "6726825d", str(tmp_path)):
        assert told in str(error.value)


class Hostile:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


@pytest.mark.parametrize("kind", ["empty", "text", "list", "other", "hostile", "shape", "extra"])
def test_a_file_that_holds_something_else(tmp_path: Path, inception_file: Path, kind: str) -> None:
    file, proof = tmp_path / "weights.pth", tmp_path / "executed"
    state = torch.load(inception_file, weights_only=True) if kind in ("shape", "extra") else {}
    if kind == "shape":
        state["Mixed_7b.branch_pool.conv.weight"] = torch.zeros(192, 2048, 3, 3)
    contents: Any = {
        "empty": b"", "text": b"no weights at all", "list": [torch.zeros(1)],
        "other": {"nothing": torch.zeros(1)}, "hostile": {"weight": Hostile(proof)},
        "shape": state, "extra": state | {"Mixed_8a.conv.weight": torch.zeros(1)},
    }[kind]  # fmt: skip
    if isinstance(contents, bytes):
        file.write_bytes(contents)
    else:
        torch.save(contents, file)
    makers: list[Callable[[], Extractor]] = [
        lambda: extractors.inception(weights=str(file), resize="tf1"),
        lambda: extractors.dinov2(name=DINO, weights=str(file), image_size=28),
        lambda: extractors.clip(name="ViT-B-32", weights=str(file)),
    ]
    for make in makers[: 1 if kind in ("shape", "extra") else 3]:
        with pytest.raises(ValueError, match=r"extractor.weights=.*weights.pth'"):
            make()
    assert not proof.exists()


# -- the others --------------------------------------------------------------------------------


def test_dinov2_is_timms_class_token(dino_file: Path) -> None:
    extractor = extractors.dinov2(name=DINO, weights=str(dino_file), image_size=28)
    images = pictures(side=28)
    network = timm.create_model(DINO, num_classes=0, img_size=28).eval()
    assert extractor.num_features == 384
    network.load_state_dict(extractor.network.network.state_dict())  # positions are resampled
    of_imagenet = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in of_imagenet)
    with torch.no_grad():
        expected = network.forward_features((images / 255 - mean) / std)[:, 0]
    torch.testing.assert_close(extractor(images), expected, atol=1e-5, rtol=1e-5)
    state = torch.load(dino_file, weights_only=True)
    for name in ("blocks.3.attn.qkv.weight", "cls_token", "patch_embed.proj.weight"):
        assert torch.equal(extractor.network.network.state_dict()[name], state[name])
    assert extractor.identity.startswith(f"{DINO} bicubic-antialias-28 float32 ")
    assert extractor(pictures(side=8)).shape == (3, 384)


@pytest.mark.parametrize(
    ("name", "size", "told"),
    [("resnet50", 28, "timm has no such model"), (DINO, 30, "image_size=30: .* multiples of 14")],
)
def test_dinov2_refuses(name: str, size: int, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        extractors.dinov2(name=name, weights=None, image_size=size)


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest that open_clip has a name for."""
    import open_clip

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("clip") / "weights.pt"
    torch.save(open_clip.create_model("ViT-S-32-alt").state_dict(), file)
    return file


def test_clip_from_a_file(clip_file: Path) -> None:
    import open_clip

    extractor = extractors.clip(name="ViT-S-32-alt", weights=str(clip_file))
    images = pictures(side=224, count=2)
    model, _, transform = open_clip.create_model_and_transforms(
        "ViT-S-32-alt", pretrained=str(clip_file)
    )
    with torch.no_grad():
        expected = model.eval().encode_image(transform.transforms[-1](images / 255))
    torch.testing.assert_close(extractor(images), expected, atol=1e-5, rtol=1e-5)
    assert extractor.identity.startswith("clip-ViT-S-32-alt bicubic-antialias-224 float32 ")
    assert extractor(pictures(count=1)).shape == (1, extractor.num_features)
    assert not any(n == "transformer.resblocks.0" for n, _ in extractor.named_modules())


def test_clip_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"extractor.name='ViT-B-33'.*ViT-B-32"):
        extractors.clip(name="ViT-B-33", weights="openai")
    with pytest.raises(ValueError, match=r"extractor.weights='mine'.*tags are .*laion2b"):
        extractors.clip(name="ViT-B-32", weights="mine")

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no route to the hub")

    monkeypatch.setattr("open_clip.create_model_and_transforms", offline)
    with pytest.raises(ValueError, match=r"huggingface.co/laion/.*no route.*weights=PATH"):
        extractors.clip(name="ViT-B-32", weights="laion2b_s34b_b79k")


def test_dinov2_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no route to the hub")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"dinov2_vits14_pretrain.pth or .*no route.*=PATH"):
        extractors.dinov2(name=DINO, weights=None, image_size=28)


def test_an_extractor_can_be_copied() -> None:
    one = MAKERS["random_conv"]()
    assert copy.deepcopy(one).identity == one.identity
