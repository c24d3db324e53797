"""One of several processes that train one run together; `salon.run` starts them.

python -m salon.rank FOLDER      the run that FOLDER/ranks/config.yaml describes
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from pathlib import Path

from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from salon import doors, run


def main() -> None:
    folder = Path(sys.argv[1])
    threading.Thread(target=_outlive_nobody, args=(os.getppid(),), daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    cfg = OmegaConf.load(folder / run.RANKS)
    assert isinstance(cfg, DictConfig)
    # Stages are composed from conf/, as in the process that started this one.
    with (
        doors.errors_for_people(lambda: f"; go on with resume={folder}"),
        initialize_config_dir(str(doors.CONF), version_base="1.3"),
    ):
        run.train(cfg, folder)


def _outlive_nobody(parent: int) -> None:
    """A rank whose starter was killed would train on, unseen."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    main()
