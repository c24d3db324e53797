"""Step by step against diffusers' schedulers, with a network that is no ideal denoiser."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from torch import Tensor

from salon.diffusion.samplers import dpmpp_2m, euler, euler_ancestral, heun
from salon.diffusion.schedule import START, CosineV, Denoise, RectifiedFlow, denoiser

# diffusers 0.42 hands NumPy a tensor in a way that NumPy 2 announces to drop.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BAR = 2e-6  # of the largest value in a step; diffusers keeps its tables in float32
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
COSINE = CosineV(shift=1.0)


def network(x: Tensor, t: Tensor) -> Tensor:
    mix = torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=x.dtype) / 3
    return torch.tanh(x @ mix + torch.sin(3 * t)[:, None]) + 0.5 * x


def noise() -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def recorded(denoise: Denoise) -> tuple[Denoise, list[Tensor]]:
    states: list[Tensor] = []

    def record(y: Tensor, sigma: Tensor) -> Tensor:
        states.append(y)
        return denoise(y, sigma)

    return record, states


def epsilon_denoise(y: Tensor, sigma: Tensor) -> Tensor:
    x = y / (1 + sigma**2).sqrt()
    return y - sigma * network(x, COSINE.t(sigma).expand(len(y)))


DENOISE = {"epsilon": epsilon_denoise, "v_prediction": denoiser(COSINE, network)}


def ddim(prediction: str, steps: int) -> tuple[DDIMScheduler, Tensor]:
    scheduler = DDIMScheduler(
        **BETAS, prediction_type=prediction, clip_sample=False, steps_offset=1
    )
    scheduler.set_timesteps(steps)
    alphas = scheduler.alphas_cumprod[scheduler.timesteps].double()
    sigmas = ((1 - alphas) / alphas).sqrt()
    return scheduler, torch.cat([sigmas, sigmas.new_zeros(1)])


def with_sigmas(kind: type, prediction: str, steps: int, **options: object) -> tuple:
    scheduler = kind(**BETAS, prediction_type=prediction, **options)
    scheduler.set_timesteps(steps)
    return scheduler, scheduler.sigmas.double()


def compare(theirs: list[Tensor], ours: list[Tensor]) -> None:
    assert len(theirs) == len(ours)
    for step, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        error = float((their - our).abs().max() / their.abs().max())
        assert error < BAR, f"step {step}: {error:.1e}"


CASES = {
    "ddim": (euler, lambda p: ddim(p, 20)),
    "ddim 50": (euler, lambda p: ddim(p, 50)),
    "euler": (euler, lambda p: with_sigmas(EulerDiscreteScheduler, p, 20)),
    "heun": (heun, lambda p: with_sigmas(HeunDiscreteScheduler, p, 20)),
    "2m": (dpmpp_2m, lambda p: with_sigmas(DPMSolverMultistepScheduler, p, 20)),
    "2m 10": (dpmpp_2m, lambda p: with_sigmas(DPMSolverMultistepScheduler, p, 10)),
    "2m karras": (
        dpmpp_2m,
        lambda p: with_sigmas(DPMSolverMultistepScheduler, p, 20, use_karras_sigmas=True),
    ),
}


@pytest.mark.parametrize("prediction", DENOISE)
@pytest.mark.parametrize("case", CASES)
def test_every_state_equals_diffusers(case: str, prediction: str) -> None:
    sampler, make = CASES[case]
    scheduler, sigmas = make(prediction)
    exploding = isinstance(scheduler, EulerDiscreteScheduler | HeunDiscreteScheduler)

    def rescaled(sigma: Tensor) -> Tensor:
        """From our coordinates to those of the scheduler's state."""
        return sigma.new_ones(()) if exploding else 1 / (1 + sigma**2).sqrt()

    sample = noise() * sigmas[0] * rescaled(sigmas[0])
    theirs = []
    for timestep, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        theirs.append(sample / rescaled(sigma))
        x = scheduler.scale_model_input(sample, timestep)
        output = network(x, COSINE.t(sigma).expand(len(x)))
        sample = scheduler.step(output, timestep, sample).prev_sample

    # Heun's scheduler repeats the inner levels, one for each of its evaluations.
    grid = torch.cat([sigmas[:1], sigmas[1::2]]) if sampler is heun else sigmas
    denoise, ours = recorded(DENOISE[prediction])
    end = sampler(denoise, noise() * sigmas[0], grid)
    compare([*theirs, sample], [*ours, end])


@pytest.mark.parametrize("prediction", DENOISE)
def test_ancestral_states_equal_ddim_with_eta_1(prediction: str) -> None:
    scheduler, sigmas = ddim(prediction, 20)
    generator = torch.Generator().manual_seed(3)
    eps = torch.randn(19, 4, 6, generator=generator, dtype=torch.float64)
    sample = noise() * sigmas[0] / (1 + sigmas[0] ** 2).sqrt()
    theirs = []
    for i, (timestep, sigma) in enumerate(zip(scheduler.timesteps, sigmas, strict=False)):
        theirs.append(sample * (1 + sigma**2).sqrt())
        output = network(sample, COSINE.t(sigma).expand(len(sample)))
        last = i == len(eps)
        options = {"eta": 0.0} if last else {"eta": 1.0, "variance_noise": eps[i]}
        sample = scheduler.step(output, timestep, sample, **options).prev_sample

    denoise, ours = recorded(DENOISE[prediction])
    end = euler_ancestral(denoise, noise() * sigmas[0], sigmas, eps)
    compare([*theirs, sample], [*ours, end])


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_rectified_flow_equals_diffusers(shift: float) -> None:
    flow = RectifiedFlow(mean=0.0, std=1.0, shift=shift)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=torch.linspace(START, 0, 21)[:-1].tolist())
    times = scheduler.sigmas.double()  # t in our words
    sigmas = flow.sigmas(20)
    torch.testing.assert_close(flow.t(sigmas.double()), times, rtol=1e-6, atol=0)

    sample = noise() * times[0]
    theirs = []
    for timestep, t in zip(scheduler.timesteps, times, strict=False):
        theirs.append(sample / (1 - t))
        output = network(sample, (timestep / 1000).double().expand(len(sample)))
        sample = scheduler.step(output, timestep, sample).prev_sample.double()

    denoise, ours = recorded(denoiser(flow, network))
    grid = flow.sigma(times)
    end = euler(denoise, noise() * grid[0], grid)
    compare([*theirs, sample], [*ours, end])
