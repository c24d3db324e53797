import pytest
import torch
from torch import Tensor

from salon.diffusion.guidance import classifier_free, concat, drop_condition, guided
from salon.diffusion.samplers import dpmpp_2m
from salon.types import Text

N, L, L0, D, DP = 3, 5, 2, 4, 6
SIGMA = torch.tensor(2.0)


def make_text(n: int, length: int, seed: int) -> Text:
    g = torch.Generator().manual_seed(seed)
    return Text(
        tokens=torch.randn(n, length, D, generator=g),
        mask=torch.arange(length).expand(n, length)
        < torch.randint(1, length + 1, (n, 1), generator=g),
        pooled=torch.randn(n, DP, generator=g),
    )


TEXT, NULL = make_text(N, L, 0), make_text(1, L0, 1)
Y = torch.randn(N, D, 2, generator=torch.Generator().manual_seed(2))


class Network:
    """A denoiser whose answer depends on every part of its text; counts samples and calls."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, y: Tensor, sigma: Tensor, text: Text) -> Tensor:
        assert len(y) == len(text.tokens) == len(text.mask) == len(text.pooled)
        self.batches.append(len(y))
        words = (text.tokens * text.mask[:, :, None]).sum(1)  # (N, D)
        return torch.tanh(y + words[:, :, None] * sigma) + text.pooled[:, :1, None]


def both() -> tuple[Tensor, Tensor]:
    null = Text(*(part.repeat(N, *[1] * (part.ndim - 1)) for part in NULL))
    return Network()(Y, SIGMA, TEXT), Network()(Y, SIGMA, null)


@pytest.mark.parametrize("scale", [-1.0, 0.3, 4.0])
def test_batched_guidance_is_the_formula_over_separate_passes(scale: float) -> None:
    network = Network()
    answer = guided(network, TEXT, NULL, scale, None)(Y, SIGMA)
    c, u = both()
    torch.testing.assert_close(answer, u + scale * (c - u), rtol=1e-5, atol=1e-5)
    assert network.batches == [2 * N]
    separate = classifier_free(lambda y, s: c, lambda y, s: u, scale)(Y, SIGMA)
    torch.testing.assert_close(answer, separate, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("scale", "which"), [(1, 0), (1.0, 0), (0, 1), (0.0, 1)])
def test_scale_one_and_zero_are_single_passes_bit_for_bit(scale: float, which: int) -> None:
    network = Network()
    answer = guided(network, TEXT, NULL, scale, None)(Y, SIGMA)
    assert torch.equal(answer, both()[which])
    assert network.batches == [N]

    def never(y: Tensor, sigma: Tensor) -> Tensor:
        raise AssertionError("this pass is not needed")

    passes = [never, never]
    passes[which] = lambda y, sigma: both()[which]
    assert torch.equal(classifier_free(passes[0], passes[1], scale)(Y, SIGMA), both()[which])


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_guidance_acts_inside_its_interval_only(scale: float) -> None:
    network = Network()
    denoise = guided(network, TEXT, NULL, scale, (0.5, 2.0))
    everywhere = guided(Network(), TEXT, NULL, scale, None)
    for sigma, acts in [(2.01, False), (2.0, True), (0.51, True), (0.5, False), (0.1, False)]:
        level = torch.tensor(sigma)
        alone = Network()(Y, level, TEXT)
        assert torch.equal(denoise(Y, level), everywhere(Y, level) if acts else alone)
        assert torch.equal(denoise(Y, level), alone) is not acts
    assert set(network.batches) == ({N, 2 * N} if scale == 3 else {N})


def test_an_interval_costs_what_it_spans() -> None:
    network = Network()
    sigmas = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0])
    dpmpp_2m(guided(network, TEXT, NULL, 3.0, (1.0, 4.0)), sigmas[0] * Y, sigmas)
    assert network.batches == [N, 2 * N, 2 * N, N]


@pytest.mark.parametrize("interval", [(2.0, 0.5), (-1.0, 2.0), (1.0, 1.0)])
def test_an_empty_interval_is_named(interval: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"interval=\("):
        guided(Network(), TEXT, NULL, 3.0, interval)


@pytest.mark.parametrize("null_length", [L0, L, L + 3])
def test_dropped_captions_become_the_null_text(null_length: int) -> None:
    null = make_text(1, null_length, 3)
    drop = torch.tensor([True, False, True])
    out = drop_condition(TEXT, null, drop)
    length = max(L, null_length)
    assert out.tokens.shape == (N, length, D)
    assert out.mask.shape == (N, length)
    assert out.mask.dtype == torch.bool
    for i in range(N):
        source, row = (null, 0) if drop[i] else (TEXT, i)
        own = source.tokens.shape[1]
        assert torch.equal(out.tokens[i, :own], source.tokens[row])
        assert torch.equal(out.mask[i, :own], source.mask[row])
        assert not out.tokens[i, own:].any()
        assert not out.mask[i, own:].any()
        assert torch.equal(out.pooled[i], source.pooled[row])


def test_dropping_follows_its_draws() -> None:
    n = 4000
    text = Text(torch.ones(n, L, D), torch.ones(n, L, dtype=torch.bool), torch.ones(n, DP))
    null = Text(torch.zeros(1, L0, D), torch.ones(1, L0, dtype=torch.bool), torch.zeros(1, DP))
    drop = torch.rand(n, generator=torch.Generator().manual_seed(0)) < 0.1
    out = drop_condition(text, null, drop)
    rate = 1 - out.pooled.mean().item()
    assert rate == pytest.approx(0.1, abs=0.015)  # three standard errors
    for gone in (out.pooled == 0).all(1), (out.tokens == 0).all((1, 2)), ~out.mask[:, L0:].any(1):
        assert torch.equal(gone, drop)


def test_a_network_that_masks_sees_no_padding() -> None:
    everything = torch.ones(N, dtype=torch.bool)
    dropped = drop_condition(TEXT, NULL, everything)
    torch.testing.assert_close(Network()(Y, SIGMA, dropped), both()[1])
    kept = drop_condition(TEXT, make_text(1, L + 3, 3), ~everything)
    torch.testing.assert_close(Network()(Y, SIGMA, kept), both()[0])


def test_concat_pads_to_the_longest() -> None:
    out = concat(NULL, TEXT)
    assert out.tokens.shape == (1 + N, L, D)
    assert torch.equal(out.tokens[0, :L0], NULL.tokens[0])
    assert torch.equal(out.mask[0, :L0], NULL.mask[0])
    assert not out.tokens[0, L0:].any()
    assert not out.mask[0, L0:].any()
    for part, whole in zip(TEXT, out, strict=True):
        assert torch.equal(part, whole[1:])
