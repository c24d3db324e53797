"""python benchmarks/frechet.py

The Frechet distance of given features: salon.metrics.frechet against torchmetrics' way (eigenvalues
of the product of the covariances, float64) and scipy's (sqrtm of it), covariances included. They
take turns, on one thread, in process CPU time, so that what else the machine does falls on all
alike; only the ratios of the medians travel between machines. Each one's error is that from the
nuclear norm of the product of the centred features' triangular factors, by numpy.
"""

import argparse
import statistics
from functools import partial

import numpy as np
import scipy
import torch
import torchmetrics
from scipy.linalg import sqrtm
from torch import Tensor
from torchmetrics.image.fid import _compute_fid
from turns import interleaved

from salon.metrics.frechet import frechet

SIZES = {
    "E = 2048, N = 500": {"features": 2048, "count": 500},
    "E = 512, N = 5000": {"features": 512, "count": 5000},
}


def by_torchmetrics(real: Tensor, made: Tensor) -> float:
    moments = [x for y in (real, made) for x in (y.double().mean(0), torch.cov(y.double().T))]
    return float(_compute_fid(*moments))


def by_scipy(real: Tensor, made: Tensor) -> float:
    a, b = (x.double().numpy() for x in (real, made))
    one, other = np.cov(a.T), np.cov(b.T)
    root = np.trace(sqrtm(one @ other)).real
    gap = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(gap + np.trace(one) + np.trace(other) - 2 * root)


def exact(real: Tensor, made: Tensor) -> float:
    a, b = (x.double().numpy() for x in (real, made))
    one, other = (np.linalg.qr((x - x.mean(0)) / (len(x) - 1) ** 0.5, "r") for x in (a, b))
    root = np.linalg.svd(one @ other.T, compute_uv=False).sum()
    gap = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(gap + (one**2).sum() + (other**2).sum() - 2 * root)


def inputs(*, features: int, count: int) -> tuple[Tensor, Tensor]:
    """Of variances that fall as 1 / rank, as those of image features do."""
    scales = torch.arange(1, features + 1) ** -0.5
    real, made = torch.randn(2, count, features) * scales
    return real, 1.1 * made + 0.02


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    calls = {"salon": frechet, "torchmetrics": by_torchmetrics, "scipy": by_scipy}
    print(
        f"torch {torch.__version__}, torchmetrics {torchmetrics.__version__}, "
        f"scipy {scipy.__version__}, {torch.get_num_threads()} thread; median CPU seconds of "
        f"{arguments.rounds} rounds"
    )
    print(f"{'':<19}{'':<14}{'seconds':>9}{'ratio':>7}{'error':>10}")
    for name, sizes in SIZES.items():
        given = inputs(**sizes)
        truth = exact(*given)
        taken = interleaved([partial(call, *given) for call in calls.values()], arguments.rounds)
        seconds = dict(zip(calls, taken, strict=True))
        ours = statistics.median(seconds["salon"])
        for who, call in calls.items():
            median, error = statistics.median(seconds[who]), call(*given) - truth
            print(f"{name:<19}{who:<14}{median:>9.2f}{median / ours:>7.1f}{error:>10.1e}")


if __name__ == "__main__":
    main()
