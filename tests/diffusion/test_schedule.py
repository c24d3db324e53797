import math
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from salon.diffusion.samplers import dpmpp_2m, heun
from salon.diffusion.schedule import START, CosineV, Process, RectifiedFlow, denoiser

PROCESSES = [
    RectifiedFlow(mean=0.0, std=1.0, shift=1.0),
    RectifiedFlow(mean=-0.4, std=1.3, shift=3.0),
    CosineV(shift=1.0),
    CosineV(shift=0.5),
]
by_process = pytest.mark.parametrize(
    "process", PROCESSES, ids=lambda p: f"{type(p).__name__}{p.shift}"
)


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 9, 3, 4, 5, generator=g, dtype=torch.float64)
    return x0, eps


TIMES = torch.linspace(0, 1, 9, dtype=torch.float64)


@by_process
def test_noised_then_x0_returns_the_data(process: Process, pair: tuple[Tensor, Tensor]) -> None:
    x0, eps = pair
    x, target = process.noised(x0, eps, TIMES)
    torch.testing.assert_close(process.x0(x, target, TIMES), x0, rtol=0, atol=1e-14)
    # A time without axes is one time for all samples.
    x, target = process.noised(x0, eps, TIMES[3])
    torch.testing.assert_close(process.x0(x, target, TIMES[3]), x0, rtol=0, atol=1e-14)


@by_process
def test_scale_and_sigma_are_the_coordinates_of_noised(
    process: Process, pair: tuple[Tensor, Tensor]
) -> None:
    x0, eps = pair
    inner = TIMES[:-1]  # sigma is infinite at t = 1
    per_sample = (-1, 1, 1, 1)
    y = x0[:-1] + process.sigma(inner).view(per_sample) * eps[:-1]
    expected = process.scale(inner).view(per_sample) * y
    torch.testing.assert_close(
        process.noised(x0[:-1], eps[:-1], inner).x, expected, rtol=0, atol=1e-13
    )


@by_process
def test_target_is_the_velocity_of_the_path(process: Process, pair: tuple[Tensor, Tensor]) -> None:
    """Liu et al.: dx/dt. Salimans & Ho: dx/dangle, with angle = pi t / 2."""
    x0, eps = pair
    h = 1e-5
    t = TIMES[1:-1]
    ahead, behind = (process.noised(x0[1:-1], eps[1:-1], t + d).x for d in (h, -h))
    speed = math.pi / 2 if isinstance(process, CosineV) else 1.0
    target = process.noised(x0[1:-1], eps[1:-1], t).target
    torch.testing.assert_close((ahead - behind) / (2 * h * speed), target, rtol=0, atol=1e-8)


@by_process
def test_t_inverts_sigma(process: Process) -> None:
    t = torch.linspace(1e-4, 1 - 1e-4, 99, dtype=torch.float64)
    torch.testing.assert_close(process.t(process.sigma(t)), t, rtol=1e-12, atol=0)
    assert process.sigma(t.new_zeros(1)).item() == 0


@by_process
def test_shift_multiplies_sigma(process: Process) -> None:
    t = torch.linspace(1e-3, 0.999, 99, dtype=torch.float64)
    shifted = process.sigma(process.shifted(t))
    torch.testing.assert_close(shifted, process.shift * process.sigma(t), rtol=1e-11, atol=0)
    ends = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(process.shifted(ends), ends, rtol=0, atol=1e-6)


def test_rectified_flow_at_known_points() -> None:
    flow = RectifiedFlow(mean=0.0, std=1.0, shift=3.0)
    assert flow.shifted(torch.tensor(0.5)).item() == pytest.approx(3 / 4)  # 3/2 / (1 + 2/2)
    assert flow.sigma(torch.tensor(0.75)).item() == pytest.approx(3)
    x, target = flow.noised(torch.tensor([2.0]), torch.tensor([-1.0]), torch.tensor([0.25]))
    assert (x.item(), target.item()) == (1.25, -3.0)


def test_cosine_preserves_variance_with_cosine_log_snr() -> None:
    cosine = CosineV(shift=1.0)
    t = TIMES[1:-1]
    a, b = cosine.scale(t), cosine.scale(t) * cosine.sigma(t)
    torch.testing.assert_close(a**2 + b**2, torch.ones_like(t))
    torch.testing.assert_close(a, torch.cos(math.pi * t / 2))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.8, 1.6)])
def test_logit_normal_quantiles(mean: float, std: float) -> None:
    uniform = torch.tensor([0.01, 0.2, 0.5, 0.9, 0.999], dtype=torch.float64)
    t = RectifiedFlow(mean=mean, std=std, shift=1.0).times(uniform)
    expected = [NormalDist(mean, std).inv_cdf(u) for u in uniform.tolist()]
    assert torch.logit(t).tolist() == pytest.approx(expected, abs=1e-9)
    shifted = RectifiedFlow(mean=mean, std=std, shift=4.0).times(uniform)
    assert torch.logit(shifted).tolist() == pytest.approx(
        [logit + math.log(4) for logit in expected], abs=1e-9
    )


def test_cosine_times_are_uniform_before_the_shift() -> None:
    uniform = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(CosineV(shift=1.0).times(uniform), uniform)
    sigma = CosineV(shift=2.0).sigma(CosineV(shift=2.0).times(uniform))
    torch.testing.assert_close(sigma, 2 * torch.tan(math.pi * uniform / 2))


@by_process
def test_times_of_the_extreme_draws_are_finite(process: Process) -> None:
    """torch.rand returns 0 now and then; its largest value is 1 - 2^-24."""
    t = process.times(torch.tensor([0.0, 2**-24, 1 - 2**-24]))
    assert ((t >= 0) & (t <= 1)).all()


@by_process
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_sigmas_descend_to_exactly_zero(process: Process, steps: int) -> None:
    sigmas = process.sigmas(steps)
    assert sigmas.shape == (steps + 1,)
    assert sigmas.dtype == torch.float32
    assert (sigmas.diff() < 0).all()
    assert sigmas[-1] == 0
    assert sigmas[0].item() == pytest.approx(
        process.sigma(process.shifted(torch.tensor(START, dtype=torch.float64))).item()
    )


def test_sigmas_are_uniform_in_time_before_the_shift() -> None:
    flow = RectifiedFlow(mean=0.0, std=1.0, shift=3.0)
    t = flow.t(flow.sigmas(10).double() / 3)
    torch.testing.assert_close(t.diff(), torch.full((10,), -START / 10, dtype=torch.float64))


MU, SD = 0.7, torch.tensor([0.2, 0.5, 1.0, 2.0], dtype=torch.float64)


def exact_network(process: Process, x: Tensor, t: Tensor) -> Tensor:
    """The target's mean given x, for data N(MU, SD^2)."""
    a = process.scale(t)[:, None]
    b = a * process.sigma(t)[:, None]
    variance = SD.to(x.dtype) ** 2
    x0 = MU + a * variance * (x - a * MU) / (a**2 * variance + b**2)
    eps = b * (x - a * MU) / (a**2 * variance + b**2)
    return eps - x0 if isinstance(process, RectifiedFlow) else a * eps - b * x0


@by_process
def test_denoiser_is_the_posterior_mean(process: Process) -> None:
    denoise = denoiser(process, lambda x, t: exact_network(process, x, t))
    y = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double()
    for sigma in torch.tensor([60.0, 1.0, 0.03]):  # float32 levels, float64 coefficients
        level = sigma.double()
        expected = (SD**2 * y * level + level**2 * MU) / (SD**2 + level**2)
        torch.testing.assert_close(denoise(y * level, sigma), expected, rtol=1e-10, atol=1e-10)


@by_process
@pytest.mark.parametrize("sampler", [heun, dpmpp_2m])
def test_an_exact_network_samples_the_data(process: Process, sampler) -> None:
    """Every step is affine in y, so that noise of 0 and 1 tells all."""
    denoise = denoiser(process, lambda x, t: exact_network(process, x, t))
    sigmas = process.sigmas(128)
    y = sigmas[0] * torch.tensor([[0.0], [1.0]]).expand(2, 4)
    expected = MU + (y - MU) * SD / (SD**2 + sigmas[0] ** 2).sqrt()
    torch.testing.assert_close(sampler(denoise, y, sigmas) / SD, expected / SD, rtol=0, atol=0.015)


def test_denoiser_passes_the_condition_and_one_time_per_sample() -> None:
    seen = []

    def network(x: Tensor, t: Tensor, *condition: object) -> Tensor:
        seen.append((t, condition))
        return x

    flow = RectifiedFlow(mean=0.0, std=1.0, shift=1.0)
    denoiser(flow, network)(torch.zeros(2, 3), torch.tensor(3.0), "a red circle", 5)
    ((t, condition),) = seen
    torch.testing.assert_close(t, torch.tensor([0.75, 0.75]))
    assert condition == ("a red circle", 5)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: RectifiedFlow(mean=0.0, std=0.0, shift=1.0), "std=0.0"),
        (lambda: RectifiedFlow(mean=0.0, std=1.0, shift=-1.0), "shift=-1.0"),
        (lambda: CosineV(shift=math.inf), "shift=inf"),
        (lambda: CosineV(shift=1.0).sigmas(0), "steps=0"),
    ],
)
def test_impossible_numbers_are_named(make, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        make()
