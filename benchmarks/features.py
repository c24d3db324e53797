"""python benchmarks/features.py

Inception's features of 500 images, 250 real and 250 made, and the Frechet distance between them:
ours (salon.metrics.extractors, salon.metrics.frechet) against torch-fidelity's network and its
distance. Both have the same weights, which are random, so nothing is downloaded. The two take
turns, on one thread, in process CPU time, so that what else the machine does falls on both alike;
only the ratio of the medians travels between machines.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
import torch_fidelity
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3 as fidelity
from torch_fidelity import metric_fid

from salon.metrics import extractors
from salon.metrics.frechet import frechet

Features = Callable[[Tensor], Tensor]


def weights(file: Path) -> None:
    """A file of torch-fidelity's with chance in it."""
    with (
        mock.patch.object(nn.Module, "load_state_dict"),
        mock.patch.object(fidelity, "load_state_dict_from_url"),
    ):
        network = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], None)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    torch.save(network.state_dict(), file)


def pictures(count: int, side: int) -> Tensor:
    """Patches of color under noise, so that their features differ."""
    patches = torch.rand(count, 3, 4, 4)
    wide = nn.functional.interpolate(patches, (side, side), mode="bilinear")
    return ((wide + 0.1 * torch.randn(wide.shape)).clamp(0, 1) * 255).to(torch.uint8)


def theirs_distance(real: Tensor, made: Tensor) -> float:
    statistics_of = [metric_fid.fid_features_to_statistics(x) for x in (real, made)]
    told = metric_fid.fid_statistics_to_metric(*statistics_of, verbose=False)
    return float(told[metric_fid.KEY_METRIC_FID])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pth"
        weights(file)
        ours = extractors.inception(weights=str(file), resize="tf1")
        theirs = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(file))

    sets = [pictures(given.images // 2, given.side) for _ in range(2)]
    contestants: list[tuple[Features, Callable[[Tensor, Tensor], float]]] = [
        (ours, frechet),
        (lambda images: theirs(images)[0], theirs_distance),
    ]
    seconds: list[list[list[float]]] = [[[], []], [[], []]]  # contestant, then part
    for _ in range(given.rounds):
        told, features = [], []
        for (network, distance), taken in zip(contestants, seconds, strict=True):
            start = time.process_time()
            with torch.no_grad():
                made = [torch.cat([network(x) for x in s.split(given.batch)]) for s in sets]
            middle = time.process_time()
            told.append(distance(*made))
            taken[0].append(middle - start)
            taken[1].append(time.process_time() - middle)
            features.append(torch.cat(made))
        torch.testing.assert_close(features[0], features[1], atol=1e-3, rtol=1e-4)
        assert abs(told[0] / told[1] - 1) < 1e-3, told

    print(
        f"torch {torch.__version__}, torch-fidelity {torch_fidelity.__version__}, "
        f"{torch.get_num_threads()} thread, float32; {given.images} images of {given.side} px, "
        f"median CPU seconds of {given.rounds} rounds"
    )
    print(f"{'':<10}{'salon':>9}{'torch-fidelity':>16}{'ratio':>8}")
    parts = [[*taken, [a + b for a, b in zip(*taken, strict=True)]] for taken in seconds]
    for name, a, b in zip(("features", "distance", "together"), *parts, strict=True):
        one, other = statistics.median(a), statistics.median(b)
        print(f"{name:<10}{one:>9.2f}{other:>16.2f}{other / one:>8.2f}")


if __name__ == "__main__":
    main()
