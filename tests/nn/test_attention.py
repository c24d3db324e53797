"""Attention by its definition, and what a mask may and may not do."""

import pytest
import torch

from salon.nn.attention import MultiHeadAttention, hide


def attention(**changes: object) -> MultiHeadAttention:
    torch.manual_seed(0)
    options = {"context_dim": 6, "heads": 2, "bias": True, **changes}
    return MultiHeadAttention(8, **options).double()


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 5, 8, generator=g, dtype=torch.float64)
    return x, torch.randn(2, 3, 6, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("masked", [False, True])
def test_is_its_definition(masked: bool) -> None:
    """softmax(q k^T / sqrt(d)) v for each head, Vaswani et al. 2017, equation 1."""
    model, (x, context) = attention(), tokens()
    mask = torch.tensor([[True, False, True], [True, True, False]])
    q, k, v = model.to_q(x), model.to_k(context), model.to_v(context)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = q[..., part] @ k[..., part].mT / 4**0.5
        if masked:
            scores = scores.masked_fill(~mask[:, None], -torch.inf)
        heads.append(scores.softmax(-1) @ v[..., part])
    expected = model.to_out(torch.cat(heads, dim=-1))
    torch.testing.assert_close(model(x, context, mask if masked else None), expected)


def test_without_a_context_tokens_attend_to_themselves() -> None:
    model, (x, _) = attention(context_dim=8), tokens()
    assert torch.equal(model(x), model(x, x))


def test_an_image_that_may_see_no_token_sees_all_and_what_is_hidden_is_zero() -> None:
    model, (x, context) = attention(bias=False), tokens()
    mask = torch.tensor([[False, False, False], [True, True, False]])
    output = model(x, context, mask)
    torch.testing.assert_close(output[0], model(x, context)[0])
    output.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    hidden = model(x, hide(context, mask), mask)
    torch.testing.assert_close(hidden[0], model.to_out.bias.expand(5, 8))
    torch.testing.assert_close(hidden[1], output[1])


def test_heads_must_divide() -> None:
    with pytest.raises(ValueError, match="8 channels do not divide into 3 heads"):
        attention(heads=3)
