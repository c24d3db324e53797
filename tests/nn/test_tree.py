"""The shared blocks of StackGAN-v2 and AttnGAN: published sizes, shapes, and what each computes."""

import pytest
import torch
from torch import nn

import r1
from salon.nn.tree import (
    Critic,
    Heads,
    Match,
    ResGLU,
    Root,
    ToImage,
    Trunk,
    UpBlock,
    doublings,
    init_orthogonal,
    resized,
    tiled,
)


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize(
    ("channels", "condition", "resolution", "published"),
    [
        (64, 128, 64, 5_723_906),  # StackGAN-v2, birds
        (64, 128, 128, 18_834_178),
        (64, 128, 256, 71_269_122),
        (64, 256, 64, 6_313_730),  # AttnGAN, CUB
        (64, 256, 128, 19_424_002),
        (64, 256, 256, 71_858_946),
        (96, 256, 64, 13_304_450),  # AttnGAN, COCO
        (96, 256, 256, 160_774_274),
    ],
)
def test_discriminators_have_their_published_sizes(
    channels: int, condition: int, resolution: int, published: int
) -> None:
    with torch.device("meta"):
        trunk = Trunk(channels=channels, resolution=resolution)
        assert count(trunk, Heads(trunk.width, condition)) == published


def test_a_discriminator_without_the_second_question_has_its_published_size() -> None:
    with torch.device("meta"):
        trunk = Trunk(channels=64, resolution=64)
        assert count(trunk, Match(trunk.width, 128)) == 5_715_713  # StackGAN in PyTorch, Stage-I


@pytest.mark.parametrize("resolution", [8, 16, 32, 64, 128])
def test_whatever_the_resolution(resolution: int) -> None:
    torch.manual_seed(0)
    trunk = Trunk(channels=2, resolution=resolution)
    h = trunk(torch.randn(2, 3, resolution, resolution))
    assert h.shape == (2, 16, 4, 4)
    assert trunk.width == 16
    root = Root(5, channels=4, resolution=resolution)
    h = root(torch.randn(2, 5))
    assert h.shape == (2, 4, resolution, resolution)
    image = ToImage(4)(100 * h)
    assert image.shape == (2, 3, resolution, resolution)
    assert image.abs().max() == 1


@pytest.mark.parametrize("resolution", [0, 2, 4, 12, 48, 65])
def test_a_resolution_that_is_not_reached_is_refused(resolution: int) -> None:
    with pytest.raises(ValueError, match=f"resolution of {resolution}.*data.resolution"):
        doublings(resolution)


def test_only_the_logits_have_biases() -> None:
    trunk = Trunk(channels=2, resolution=128)
    heads = Heads(trunk.width, 3)
    parts = [trunk, heads, Root(5, channels=4, resolution=16), UpBlock(4, 2), ResGLU(4), ToImage(4)]
    layers = [m for part in parts for m in part.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert {m for m in layers if m.bias is not None} == {heads.joint_logit, heads.alone_logit}


def test_the_image_enters_a_discriminator_without_normalisation() -> None:
    layers = list(Trunk(channels=2, resolution=64).layers)
    assert isinstance(layers[1], nn.LeakyReLU)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in layers) == 3


@pytest.mark.parametrize("resolution", [16, 128])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_without_normalisation_each_logit_is_of_its_own_image(norm: str, resolution: int) -> None:
    torch.manual_seed(0)
    critic = Critic(channels=2, condition=3, resolution=resolution, norm=norm)
    images = torch.randn(4, 3, resolution, resolution).requires_grad_()
    h = critic.trunk(images)
    joint, alone = critic.heads.joint(h, torch.randn(4, 3)), critic.heads.alone(h)
    r1.assert_norm(critic, norm, (joint, images), (alone, images))


def test_orthogonal_init() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        Root(12, channels=8, resolution=32), ResGLU(8), Heads(8, 4), nn.Linear(5, 9)
    )
    init_orthogonal(module)
    scales = []
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            w = part.weight.flatten(1)
            gram = w @ w.T if len(w) <= w.shape[1] else w.T @ w
            torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-5, rtol=0)
        elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            scales.append(part.weight)
        if getattr(part, "bias", None) is not None:
            assert not part.bias.any()
    every = torch.cat(scales).detach()
    assert abs(float(every.mean()) - 1) < 0.005
    assert abs(float(every.std()) - 0.02) < 0.003


def test_up_block_doubles_by_nearest_neighbour_and_gates() -> None:
    """With a convolution that copies one channel into the value and another into the gate."""
    block = UpBlock(2, 1).eval()
    conv = block.conv[0]
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 1, 1] = conv.weight[1, 1, 1, 1] = 1
    x = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    big = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    wanted = big[:, :1] * torch.sigmoid(big[:, 1:])
    torch.testing.assert_close(block(x), wanted, atol=1e-4, rtol=0)


def test_residual_block_adds_and_leaves_the_sum_alone() -> None:
    torch.manual_seed(0)
    block, x = ResGLU(4), torch.randn(3, 4, 5, 5)
    torch.testing.assert_close(block(x), x + block.second(block.first(x)))
    nn.init.zeros_(block.second[1].weight)
    assert torch.equal(block(x), x)  # negative values too: nothing follows the sum


def test_only_one_of_the_questions_hears_the_condition() -> None:
    torch.manual_seed(0)
    heads = Heads(6, 3).eval()
    h, one, other = torch.randn(4, 6, 4, 4), torch.randn(4, 3), torch.randn(4, 3)
    assert heads.alone(h).shape == heads.joint(h, one).shape == (4,)
    assert (heads.joint(h, one) - heads.joint(h, other)).abs().min() > 1e-4
    # Asked alone, nothing is normalised over the batch.
    torch.testing.assert_close(heads.train().alone(h)[:1], heads.alone(h[:1]))
    heads.eval()
    mixed = torch.cat([one[:1], other[1:]])
    torch.testing.assert_close(heads.joint(h, mixed)[0], heads.joint(h, one)[0])


def test_the_condition_stands_at_every_place() -> None:
    h, condition = torch.zeros(2, 1, 3, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    both = tiled(h, condition)
    assert both.shape == (2, 3, 3, 2)
    assert (both[1, 1] == 3).all()
    assert (both[0, 2] == 2).all()
    assert not both[:, 0].any()


def test_smaller_images_are_antialiased_and_stay_in_range() -> None:
    # Of each four columns only the outer ones are white: sampling at the middle would see none.
    columns = torch.tensor([1.0, -1.0, -1.0, 1.0]).repeat(8).expand(1, 3, 32, 32)
    small = resized(columns, 8)
    assert small.shape == (1, 3, 8, 8)
    assert small[..., 1:-1].abs().max() < 0.3
    noise = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).round() * 2 - 1
    assert resized(noise, 16).abs().max() <= 1
    assert resized(noise, 32) is noise
    torch.testing.assert_close(
        resized(torch.full((1, 3, 8, 8), 0.3), 4), torch.full((1, 3, 4, 4), 0.3)
    )


def test_images_are_never_enlarged() -> None:
    with pytest.raises(ValueError, match=r"data\.resolution=8: this network paints 16 px"):
        resized(torch.zeros(1, 3, 8, 8), 16)
