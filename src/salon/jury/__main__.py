"""python -m salon.jury evaluate|report --help"""

import sys

import hydra
from omegaconf import DictConfig

from salon import doors
from salon.jury import compare, evaluate, publish


@hydra.main(version_base="1.3", config_path=str(doors.CONF), config_name="evaluate")
def judge(cfg: DictConfig) -> None:
    evaluate.evaluate(cfg)


def main() -> None:
    if sys.argv[1:2] not in (["evaluate"], ["report"]):
        print(
            "usage: python -m salon.jury evaluate checkpoint=PATH [KEY=VALUE ...]\n"
            "       python -m salon.jury report FOLDER... [out=report] [logger=wandb]\n"
            "Each tells more with --help."
        )
        sys.exit(0 if sys.argv[1:2] == ["--help"] else 2)
    with doors.errors_for_people():
        if sys.argv[1] == "report":
            publish.report(compare.report(sys.argv[2:]))
        else:
            del sys.argv[1]
            judge()


if __name__ == "__main__":
    main()
