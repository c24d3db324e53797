"""python -m salon.jury evaluate --help"""

import sys

import hydra
from omegaconf import DictConfig

from salon import doors
from salon.jury import evaluate


@hydra.main(version_base="1.3", config_path=str(doors.CONF), config_name="evaluate")
def judge(cfg: DictConfig) -> None:
    evaluate.evaluate(cfg)


def main() -> None:
    if sys.argv[1:2] != ["evaluate"]:
        sys.exit("usage: python -m salon.jury evaluate checkpoint=PATH [KEY=VALUE ...]")
    del sys.argv[1]
    with doors.errors_for_people():
        judge()


if __name__ == "__main__":
    main()
