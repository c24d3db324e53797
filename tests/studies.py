"""Studies that nobody trained: a sweep folder as a search leaves it, in milliseconds."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.distributions import (
    CategoricalDistribution,
    IntUniformDistribution,
    LogUniformDistribution,
)
from optuna.trial import TrialState, create_trial

from salon.callbacks.prune import PRUNED
from salon.search.study import ABOUT, TRIAL

NAME = "tpe_made_up"
LR = "model.optimizer.lr"
WIDTH = "model.channels"


def study(
    folder: Path,
    *,
    trials: int = 12,
    objectives: Sequence[str] = ("quality/prompt_accuracy",),
    directions: Sequence[str] = ("maximize",),
) -> optuna.Study:
    """Better the nearer the rate is to 1e-3; every fifth is pruned, the last has failed."""
    folder.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{folder}/study.db"
    made = optuna.create_study(study_name=NAME, storage=storage, directions=list(directions))
    chance = random.Random(0)
    for number in range(trials):
        lr = 10 ** chance.uniform(-4, -2)
        width = chance.choice(["8", "16", "[8,8]"])
        value = 1 - abs(math.log10(lr) + 3) / 2
        pruned = number % 5 == 4 and len(objectives) == 1
        failed = number == trials - 1
        seen = range(1000, 3000 if pruned else 5000, 1000)
        values = [
            value * (0.5 if pruned else 1),
            *(1e9 * (i + lr) for i in range(1, len(objectives))),
        ]
        made.add_trial(
            create_trial(
                state=TrialState.FAIL if failed else TrialState.COMPLETE,
                values=None if failed else values,
                params={LR: lr, WIDTH: width, TRIAL: number},
                distributions={
                    LR: LogUniformDistribution(1e-4, 1e-2),
                    WIDTH: CategoricalDistribution(["8", "16", "[8,8]"]),
                    TRIAL: IntUniformDistribution(number, number),
                },
                intermediate_values={x: value * x / 4000 for x in seen},
                user_attrs={PRUNED: True} if pruned else {},
            )
        )
    about = {
        "command": "python train.py -m +sweep=tpe model=cvae seed=1",
        "overrides": ["+sweep=tpe", "model=cvae", "seed=1"],
        "keys": [LR, WIDTH],
        "objective": list(objectives),
        "direction": list(directions),
        "storage": storage,
        "study": NAME,
    }
    (folder / ABOUT).write_text(json.dumps(about))
    return made
