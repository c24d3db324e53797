"""Train a model, or one of its stages: python train.py --help"""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from salon import after, doors, run


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> run.Value:
    job = HydraConfig.get()
    cfg = run.resumed(cfg, list(job.overrides.task))
    return run.train(cfg, Path(job.runtime.output_dir))


if __name__ == "__main__":
    with doors.errors_for_people("; go on with resume=RUN_FOLDER"):
        main()
        after.conclude()
