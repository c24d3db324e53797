"""Draw pictures from a checkpoint: python sample.py --help"""

import hydra
from omegaconf import DictConfig

from salon import doors, draw


@hydra.main(version_base="1.3", config_path="conf", config_name="sample")
def main(cfg: DictConfig) -> None:
    draw.draw(cfg)


if __name__ == "__main__":
    with doors.errors_for_people():
        main()
