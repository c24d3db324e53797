"""Operations told apart by part, each share against its closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from salon.metrics.flops import FlopCount
from salon.metrics.parts import Attribution

N, A, B = 3, 4, 5


class Two(nn.Module):
    """A generator A -> B and a discriminator B -> 1 with a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.generator = nn.Sequential(nn.Linear(A, B), nn.Tanh())
        self.discriminator = nn.Sequential(nn.Linear(B, B), nn.Softplus(), nn.Linear(B, 1))
        self.frozen = nn.Linear(A, A).requires_grad_(False)

    @property
    def parts(self) -> dict[str, list[nn.Module]]:
        return {name: [child] for name, child in self.named_children()}


G, D1, D2 = 2 * N * A * B, 2 * N * B * B, 2 * N * B  # of one pass forward


def test_forward_and_backward_belong_to_the_part() -> None:
    two = Two()
    with FlopCount(two.parts) as count:
        z = two.frozen(torch.randn(N, A))
        two.discriminator(two.generator(z)).sum().backward()
    assert count.by_part == {
        "frozen": 2 * N * A * A,
        "generator": 2 * G,  # z needs no gradient
        "discriminator": 3 * (D1 + D2),
    }
    assert sum(count.by_part.values()) == count.total


def test_a_gradient_that_is_differentiated_is_a_penalty() -> None:
    """R1: through a leaf, which torch's own tracker of modules does not survive."""
    two = Two()
    images = torch.randn(N, B, requires_grad=True)

    def plain() -> Tensor:
        return two.discriminator(images).sum()

    with FlopCount(two.parts) as without:
        plain().backward()
    assert without.by_part == {"discriminator": 3 * (D1 + D2)}
    with FlopCount(two.parts) as count:
        loss = plain()
        (gradient,) = torch.autograd.grad(loss, images, create_graph=True)
        (loss + gradient.square().sum()).backward()
    assert set(count.by_part) == {"discriminator", "penalties"}
    # The backward of D's own forward is one, whatever flows into it: no more than without.
    assert count.by_part["discriminator"] == 3 * (D1 + D2)
    # By the input through both layers; then the backward of these products, by the weights and by
    # what flowed in, which in the last layer is the constant 1 and needs none.
    assert count.by_part["penalties"] == (D1 + D2) + (2 * D1 + D2)
    assert sum(count.by_part.values()) == count.total


def test_what_no_module_does_is_other() -> None:
    two = Two()
    weight = torch.randn(B, B, requires_grad=True)
    with FlopCount(two.parts) as count:
        (two.generator(torch.randn(N, A)) @ weight).sum().backward()
    assert count.by_part == {"generator": 2 * G, "other": 3 * 2 * N * B * B}


def test_composites_and_views_keep_their_part() -> None:
    """Calls that make several nodes, of which a caller sees the last one alone."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    linear = nn.Linear(8, 4)
    x = torch.randn(N, 6, 8)
    with FlopCount({"attention": [attention], "linear": [linear]}) as count:
        linear(attention(x, x, x)[0]).sum().backward()
    with FlopCount() as alone:
        attention(x, x, x)[0].sum().backward()
    assert count.by_part == {"attention": alone.total, "linear": 3 * 2 * N * 6 * 8 * 4}


def test_the_first_part_has_what_two_share_and_the_innermost_wins() -> None:
    two = Two()
    both = nn.ModuleList([two.generator, two.discriminator])
    outer = nn.Sequential(two.generator, two.discriminator)
    with FlopCount({"generator": [two.generator], "all": [outer, both]}) as count:
        outer(torch.randn(N, A)).sum().backward()
    assert count.by_part == {"generator": 2 * G, "all": 3 * (D1 + D2)}


def test_telling_apart_changes_no_number() -> None:
    found = []
    for parts in (None, Two().parts):
        two = Two()
        parts = None if parts is None else two.parts
        torch.manual_seed(1)
        with FlopCount(parts) as count:
            x = torch.randn(N, A)
            y = nn.functional.dropout(two.generator(x))
            two.discriminator(y).square().mean().backward()
        gradients = [p.grad for p in two.parameters() if p.grad is not None]
        found.append([torch.tensor(count.total), torch.rand(3), *gradients])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_an_exception_leaves_nothing_behind() -> None:
    class Broken(nn.Module):
        def forward(self) -> None:
            raise RuntimeError("broken")

    broken, two = Broken(), Two()
    with FlopCount({"broken": [broken], **two.parts}) as count:
        with pytest.raises(RuntimeError, match="broken"):
            broken()
        two.generator(torch.randn(N, A))
        torch.ones(2, 2) @ torch.ones(2, 2)
    assert count.by_part == {"generator": G, "other": 16}
    hooks = torch.nn.modules.module
    assert not hooks._global_forward_pre_hooks
    assert not hooks._global_forward_hooks


def test_torch_has_what_this_stands_on() -> None:
    """A private name of torch's: should it go, costs can no longer be told apart in backward."""
    assert torch._C._current_autograd_node() is None
    with Attribution({}) as whose:
        assert whose.part() == "other"
