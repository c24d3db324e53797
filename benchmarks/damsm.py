"""python benchmarks/damsm.py

The word scores of all pairs of a batch, forward and backward: all at once (salon.losses.damsm)
against a loop over the captions, each without its padding against all images. The two take turns,
on one thread, in process CPU time, so that what else the machine does falls on both alike; only the
ratio of the medians travels between machines.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from turns import interleaved

from salon.losses.damsm import word_scores

GAMMAS = {"gamma1": 4.0, "gamma2": 5.0}
# Pairs of batch x batch; captions of half to all of `words`.
SIZES = {
    "tiny, 4 x 4 regions": {"batch": 64, "words": 18, "regions": 16, "features": 48},
    "tiny, 8 x 8 regions": {"batch": 64, "words": 18, "regions": 64, "features": 48},
    "published": {"batch": 48, "words": 15, "regions": 289, "features": 256},
}


def looped(words: Tensor, mask: Tensor, regions: Tensor, *, gamma1: float, gamma2: float) -> Tensor:
    columns = []
    for caption, standing in zip(words, mask, strict=True):
        caption = caption[standing]  # (T, D)
        share = (regions @ caption.T).softmax(2)  # (M, R, T)
        alpha = (gamma1 * share).softmax(1).transpose(1, 2)  # (M, T, R)
        cosine = F.cosine_similarity(alpha @ regions, caption[None], dim=2)  # (M, T)
        columns.append((gamma2 * cosine).logsumexp(1))
    return torch.stack(columns, dim=1)  # (M, N)


def inputs(*, batch: int, words: int, regions: int, features: int) -> tuple[Tensor, Tensor, Tensor]:
    lengths = torch.randint(words // 2, words + 1, (batch,))
    mask = torch.arange(words) < lengths[:, None]
    tokens = torch.randn(batch, words, features, requires_grad=True)
    return tokens, mask, torch.randn(batch, regions, features, requires_grad=True)


def step(
    score: Callable[..., Tensor], given: tuple[Tensor, Tensor, Tensor]
) -> Callable[[], Tensor]:
    tokens, _, regions = given

    def run() -> Tensor:
        scores = score(*given, **GAMMAS)
        torch.autograd.grad(scores.sum(), (tokens, regions))
        return scores.detach()

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} thread, float32; forward and "
        f"backward, median CPU seconds of {arguments.rounds} rounds"
    )
    print(f"{'':<21}{'batched':>8}{'looped':>8}{'ratio':>7}")
    for name, sizes in SIZES.items():
        given = inputs(**sizes)
        steps = step(word_scores, given), step(looped, given)
        torch.testing.assert_close(steps[0](), steps[1](), atol=1e-4, rtol=1e-4)
        a, b = map(statistics.median, interleaved(steps, arguments.rounds))
        print(f"{name:<21}{a:>8.3f}{b:>8.3f}{a / b:>7.2f}")


if __name__ == "__main__":
    main()
