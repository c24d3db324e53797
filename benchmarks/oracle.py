"""python benchmarks/oracle.py

Pictures per second on one core: read by the analytic oracle (salon.metrics.oracle), and by a
learned reader (salon.metrics.lenient) of the size of conf/model/reader/tiny.yaml, untrained; last,
scenes drawn and rendered. The two take turns, on one thread, in process CPU time, so that what else
the machine does falls on both alike. Noise has no objects to recognise, which is what costs the
oracle.
"""

import argparse
import statistics
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from turns import interleaved

from salon.metrics import lenient, oracle
from salon.models.reader import CellNet
from salon.shapes.render import render
from salon.shapes.world import draw_scene


def renders(side: int, number: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [render(draw_scene(rng, objects=1 + (i % 2)), side) for i in range(number)]


def noise(side: int, number: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (number, side, side, 3), dtype=np.uint8))


def noisy(side: int, number: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(1)
    plain = np.stack(renders(side, number))
    return list((plain + rng.normal(0, 12, plain.shape)).clip(0, 255).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=200)
    arguments = parser.parse_args()
    number = arguments.pictures
    torch.set_num_threads(1)
    reader = CellNet(image_size=32, channels=40, blocks=3).eval()
    print(
        f"numpy {np.__version__}, torch {torch.__version__}, 1 thread; pictures per second, median "
        f"of {arguments.rounds} rounds of {number}"
    )
    print(f"{'':<24}{'oracle':>9}{'reader':>9}")
    for side in (32, 64):
        for name, make in (("renders", renders), ("noisy renders", noisy), ("noise", noise)):
            images = torch.from_numpy(np.stack(make(side, number))).permute(0, 3, 1, 2) / 127.5 - 1
            both = (partial(oracle.read_all, images), partial(lenient.read_all, reader, images))
            taken = interleaved(both, arguments.rounds)
            rates = (number / statistics.median(times) for times in taken)
            print(f"{f'{name}, {side} px':<24}" + "".join(f"{rate:>9.0f}" for rate in rates))
        taken = interleaved([partial(renders, side, number)], arguments.rounds)
        print(f"{f'rendering, {side} px':<24}{number / statistics.median(taken[0]):>9.0f}")


if __name__ == "__main__":
    main()
