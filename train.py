"""Train a model, or one of its stages: python train.py --help"""

import hydra
from omegaconf import DictConfig

from salon import after, doors, run
from salon.multirun import job, table


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> run.Value:
    return job.train(cfg)


if __name__ == "__main__":
    with doors.errors_for_people(table.go_on), after.concluded(), table.concluded():
        main()
