"""Each loss against numbers worked out by hand, its gradients' signs, and logits far out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from salon.losses import adversarial as losses

REAL, WRONG, FAKE = [2.0, -1.0], [0.5, 1.5], [-0.3, 0.7]
REAL_ALONE, WRONG_ALONE, FAKE_ALONE = [1.0, 0.2], [-0.6, 2.4], [-2.0, 0.4]
TERMS = {  # mean of log(1 + exp(-+logit)) over the two logits
    "real": 0.720095,
    "wrong": 1.337745,
    "fake": 0.828771,
    "real_alone": 0.455700,
    "fake_alone": 0.519972,
}
LOGITS = {
    "real": REAL,
    "wrong": WRONG,
    "fake": FAKE,
    "real_alone": REAL_ALONE,
    "wrong_alone": WRONG_ALONE,
    "fake_alone": FAKE_ALONE,
}


def cls(real: Tensor, wrong: Tensor, fake: Tensor) -> Tensor:
    return losses.cls_discriminator(real, wrong, fake, wrong_weight=0.5)


# Each discriminator's loss, its arguments in order, and its value where all logits are 0.
DISCRIMINATORS: dict[str, tuple[Callable[..., Tensor], list[str], float]] = {
    "cls": (cls, ["real", "wrong", "fake"], 2 * math.log(2)),
    "joint": (
        losses.joint_discriminator,
        ["real", "wrong", "fake", "real_alone", "fake_alone"],
        2 * math.log(2),
    ),
    "tree": (losses.tree_discriminator, list(LOGITS), 6 * math.log(2)),
    "hinge": (losses.hinge_discriminator, ["real", "wrong", "fake"], 2.0),
    "relativistic": (losses.relativistic_discriminator, ["real", "fake"], math.log(2)),
}


def logits(names: list[str]) -> dict[str, Tensor]:
    return {name: torch.tensor(LOGITS[name], requires_grad=True) for name in names}


@pytest.mark.parametrize("name", sorted(TERMS))
def test_cross_entropies(name: str) -> None:
    value = losses.bce(torch.tensor(LOGITS[name]), real=name.startswith("real"))
    assert value.shape == ()
    assert value.item() == pytest.approx(TERMS[name], abs=1e-6)


def test_cross_entropy_is_that_of_torch_whatever_the_shape() -> None:
    torch.manual_seed(0)
    x = 5 * torch.randn(3, 1, 4, 2)
    for real in (True, False):
        expected = torch.nn.functional.binary_cross_entropy_with_logits(
            x, torch.full_like(x, float(real))
        )
        torch.testing.assert_close(losses.bce(x, real=real), expected)


@pytest.mark.parametrize("size", [20.0, 90.0])
def test_cross_entropy_keeps_its_gradient_far_out(size: float) -> None:
    """Through a sigmoid in float32, it would be 0 at these logits."""
    for logit, real in ((-size, True), (size, False)):
        x = torch.tensor([logit, 0.0], requires_grad=True)
        loss = losses.bce(x, real=real)
        loss.backward()
        assert x.grad is not None
        assert loss.item() == pytest.approx((size + math.log(2)) / 2, rel=1e-6)
        assert x.grad[0].item() == pytest.approx(-0.5 if real else 0.5, abs=1e-6)


def test_the_generator_does_not_saturate() -> None:
    """log(1 - D) would have a gradient of exp(-90) where the discriminator is sure."""
    x = torch.tensor([-90.0], requires_grad=True)
    losses.non_saturating(x).backward()
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(-1)
    assert losses.non_saturating(torch.tensor([50.0])).item() == pytest.approx(0, abs=1e-6)


def test_cls() -> None:
    r, w, f = (torch.tensor(x) for x in (REAL, WRONG, FAKE))
    assert cls(r, w, f).item() == pytest.approx(1.803353, abs=1e-6)
    without = losses.cls_discriminator(r, w, f, wrong_weight=0)
    assert without.item() == pytest.approx(TERMS["real"] + TERMS["fake"], abs=1e-6)
    quarter = losses.cls_discriminator(r, w, f, wrong_weight=0.25)
    expected = TERMS["real"] + 0.25 * TERMS["wrong"] + 0.75 * TERMS["fake"]
    assert quarter.item() == pytest.approx(expected, abs=2e-6)


def test_joint() -> None:
    assert losses.joint_discriminator(
        **logits(["real", "wrong", "fake", "real_alone", "fake_alone"])
    ).item() == pytest.approx(1.483393, abs=1e-6)


def test_tree_is_its_six_terms_and_a_wrong_image_alone_is_real() -> None:
    wrong_alone = sum(math.log1p(math.exp(-x)) for x in WRONG_ALONE) / 2
    value = losses.tree_discriminator(**logits(list(LOGITS))).item()
    assert value == pytest.approx(sum(TERMS.values()) + wrong_alone, abs=3e-6)


def test_hinge() -> None:
    given = logits(["real", "wrong", "fake"])
    assert losses.hinge_discriminator(**given).item() == pytest.approx(2.6, abs=1e-6)
    assert losses.hinge_generator(given["fake"]).item() == pytest.approx(-0.2, abs=1e-6)


def test_hinge_lets_go_beyond_its_margin() -> None:
    real = torch.tensor([1.5, 0.0], requires_grad=True)
    wrong = torch.tensor([-1.5, 0.0], requires_grad=True)
    fake = torch.tensor([-1.5, 0.0], requires_grad=True)
    losses.hinge_discriminator(real, wrong, fake).backward()
    for x, expected in ((real, [0, -0.5]), (wrong, [0, 0.25]), (fake, [0, 0.25])):
        assert x.grad is not None
        assert x.grad.tolist() == expected


def test_relativistic_looks_at_differences_of_its_pairs() -> None:
    real, fake = torch.tensor(REAL), torch.tensor(FAKE)
    differences = [2.3, -1.7]
    d = sum(math.log1p(math.exp(-x)) for x in differences) / 2
    g = sum(math.log1p(math.exp(x)) for x in differences) / 2
    assert losses.relativistic_discriminator(real, fake).item() == pytest.approx(d, abs=1e-6)
    assert losses.relativistic_generator(real, fake).item() == pytest.approx(g, abs=1e-6)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_a_discriminator_that_says_nothing(name: str) -> None:
    loss, arguments, expected = DISCRIMINATORS[name]
    value = loss(**{argument: torch.zeros(4) for argument in arguments})
    assert value.shape == ()
    assert value.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_each_logit_is_pushed_its_way(name: str) -> None:
    loss, arguments, _ = DISCRIMINATORS[name]
    given = {argument: torch.zeros(3, requires_grad=True) for argument in arguments}
    loss(**given).backward()
    for argument, x in given.items():
        assert x.grad is not None
        up = argument in ("real", "real_alone", "wrong_alone")
        assert ((x.grad < 0) if up else (x.grad > 0)).all(), argument
