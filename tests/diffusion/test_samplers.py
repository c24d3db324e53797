"""Order of convergence on Gaussian data, whose denoiser and trajectories are known exactly.

The global order alone lets a wrong multistep coefficient pass (its errors telescope along the
grid), so the truncation error of a single step is measured too, from an exact history.
"""

import math

import pytest
import torch
from torch import Tensor

from salon.diffusion.samplers import SAMPLERS, dpmpp_2m, euler, euler_ancestral, heun
from salon.diffusion.schedule import Denoise, RectifiedFlow, denoiser

MU = 0.7
SD = torch.tensor([0.2, 0.5, 1.0, 2.0], dtype=torch.float64)


def exact_denoise(y: Tensor, sigma: Tensor) -> Tensor:
    return (SD**2 * y + sigma**2 * MU) / (SD**2 + sigma**2)


def exact_path(start: Tensor, sigma0: Tensor, sigma1: Tensor) -> Tensor:
    return MU + (start - MU) * ((SD**2 + sigma1**2) / (SD**2 + sigma0**2)).sqrt()


def slope(h: list[float], errors: list[float]) -> float:
    x, y = torch.tensor(h).log(), torch.tensor(errors).log()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def uneven_grid(n: int) -> Tensor:
    """80 to 0.02, steps of log sigma alternating 1 : 3."""
    steps = torch.tensor([1.0, 3.0], dtype=torch.float64).repeat(n // 2)
    way = torch.cat([steps.new_zeros(1), steps.cumsum(0) / steps.sum()])
    return torch.exp(math.log(80) + way * math.log(0.02 / 80))


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2), (dpmpp_2m, 2)])
def test_global_order_on_an_uneven_grid(sampler, order: int) -> None:
    counts, errors = [64, 128, 256, 512], []
    for n in counts:
        sigmas = uneven_grid(n)
        start = sigmas[0] * torch.tensor([1.3, -0.4, 0.8, -1.1], dtype=torch.float64)
        end = sampler(exact_denoise, start, sigmas)
        errors.append(float((end - exact_path(start, sigmas[0], sigmas[-1])).abs().max()))
    assert order - 0.1 < slope([1 / n for n in counts], errors) < order + 0.5


def one_step(sampler, h: float, ratio: float) -> float:
    """Truncation error of a step of log sigma h that follows an exact step of ratio h."""
    one = torch.tensor(1.0, dtype=torch.float64)
    before, now, after = one * math.exp(ratio * h), one, one * math.exp(-h)
    y = torch.tensor([1.3, -0.4, 0.8, -1.1], dtype=torch.float64)
    if sampler is not dpmpp_2m:
        return float(
            (sampler(exact_denoise, y, torch.stack([now, after])) - exact_path(y, now, after))
            .abs()
            .max()
        )
    history = exact_denoise(exact_path(y, now, before), before)

    def denoise(state: Tensor, sigma: Tensor) -> Tensor:
        return history if sigma == before else exact_denoise(state, sigma)

    # The start from which the first step, Euler's, lands on y.
    start = history + (before / now) * (y - history)
    end = sampler(denoise, start, torch.stack([before, now, after]))
    return float((end - exact_path(y, now, after)).abs().max())


@pytest.mark.parametrize(("sampler", "order"), [(euler, 2), (heun, 3), (dpmpp_2m, 3)])
@pytest.mark.parametrize("ratio", [2.5, 0.4])
def test_local_order_after_an_exact_history(sampler, order: int, ratio: float) -> None:
    widths = [0.2 / 2**k for k in range(6)]
    errors = [one_step(sampler, h, ratio) for h in widths]
    assert slope(widths, errors) == pytest.approx(order, abs=0.15)


def recorded(denoise: Denoise) -> tuple[Denoise, list[float]]:
    levels: list[float] = []

    def record(y: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == ()
        levels.append(float(sigma))
        return denoise(y, sigma)

    return record, levels


def test_evaluations_and_their_levels() -> None:
    sigmas = torch.tensor([8.0, 2.0, 0.5, 0.0])
    expected = {
        "euler": [8.0, 2.0, 0.5],
        "ddim": [8.0, 2.0, 0.5],
        "dpmpp_2m": [8.0, 2.0, 0.5],
        "heun": [8.0, 2.0, 2.0, 0.5, 0.5],
    }
    assert set(SAMPLERS) == set(expected)
    for name, levels in expected.items():
        denoise, seen = recorded(exact_denoise)
        SAMPLERS[name](denoise, torch.ones(4, dtype=torch.float64), sigmas)
        assert seen == levels


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_level_zero_returns_the_last_x0(name: str) -> None:
    answer = torch.tensor([0.3, -0.9])
    sigmas = torch.tensor([999.0, 7.0, 0.4, 0.0])
    end = SAMPLERS[name](lambda y, sigma: answer, sigmas[0] * torch.ones(2), sigmas)
    assert torch.equal(end, answer)


@pytest.mark.parametrize("name", SAMPLERS)
def test_float32_loses_nothing_from_large_sigmas(name: str) -> None:
    sigmas = RectifiedFlow(mean=0.0, std=1.0, shift=3.0).sigmas(50)
    y = sigmas[0] * torch.tensor([1.3, -0.4, 0.8, -1.1])

    def denoise(state: Tensor, sigma: Tensor) -> Tensor:
        return exact_denoise(state.double(), sigma).to(state.dtype)

    end = SAMPLERS[name](denoise, y, sigmas)
    assert end.dtype == torch.float32
    torch.testing.assert_close(
        end.double(), SAMPLERS[name](denoise, y.double(), sigmas), rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_nothing_reads_a_value_back_from_the_device(name: str) -> None:
    """Meta tensors have no values: a sampler that waited for one would raise."""
    flow = RectifiedFlow(mean=0.0, std=1.0, shift=3.0)
    denoise = denoiser(flow, lambda x, t: x * t[:, None])
    end = SAMPLERS[name](denoise, torch.empty(2, 3, device="meta"), flow.sigmas(4))
    assert (end.shape, end.dtype, end.device.type) == ((2, 3), torch.float32, "meta")


def test_the_ancestral_sampler_draws_the_law_of_the_data() -> None:
    """By the law of total variance the steps' noise makes up for just what is forgotten."""
    generator = torch.Generator().manual_seed(0)
    sigmas = torch.cat([uneven_grid(400), torch.zeros(1, dtype=torch.float64)])
    shape = (4000, 4)
    start = MU + (SD**2 + sigmas[0] ** 2).sqrt() * torch.randn(
        shape, generator=generator, dtype=torch.float64
    )
    eps = torch.randn(len(sigmas) - 2, *shape, generator=generator, dtype=torch.float64)
    end = euler_ancestral(exact_denoise, start, sigmas, eps)
    torch.testing.assert_close(end.mean(0), torch.full_like(SD, MU), atol=0.1, rtol=0)
    torch.testing.assert_close(end.std(0), SD, atol=0, rtol=0.05)


def test_the_ancestral_sampler_ends_without_noise() -> None:
    sigmas = torch.tensor([5.0, 1.0, 0.0])
    eps = torch.ones(1, 3)
    seen: list[Tensor] = []

    def denoise(y: Tensor, sigma: Tensor) -> Tensor:
        seen.append(y)
        return 0.5 * torch.ones(3)

    end = euler_ancestral(denoise, 5 * torch.ones(3), sigmas, eps)
    assert torch.equal(end, 0.5 * torch.ones(3))
    # A level of 1 after one of 5 keeps a 25th of the distance, and adds sqrt(1 - 1/25) of noise.
    expected = 0.5 + 4.5 / 25 + math.sqrt(24 / 25)
    torch.testing.assert_close(seen[1], torch.full((3,), expected))
