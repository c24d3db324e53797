"""Ends a hopeless trial of a search.

At each validation the objective goes to the study, under the number of images seen, and a rule
compares it with what the other trials had shown by then:

    median    worse than half of them: the best of its values so far is worse than the median of
              theirs at as many images (Golovin et al. 2017, the median stopping rule, without its
              running averages)
    halving   at warmup_images * keep^k images for k = 0, 1, ...: not among the best 1 / keep of
              those that came as far (Li et al. 2020, asynchronous successive halving)

Clocks are images seen, and a trial that was validated at other moments is read at its last one
before, so that families and batch sizes may differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from salon.models.base import Trainee

Curve = Mapping[int, float]  # images seen -> the objective; less is better
PRUNED = "pruned"  # the trial's attribute in the study


class Prune(Callback):
    """Of the run that is trial number `trial` of a study."""

    def __init__(
        self,
        *,
        storage: str | None,
        study: str,
        trial: int | None,
        objective: str | Sequence[str] | None,
        direction: str | Sequence[str] | None,
        rule: str,  # median or halving
        startup_trials: int,  # so many are never stopped
        warmup_images: int,  # before which none is
        keep: int,  # of halving
    ) -> None:
        off = "To let every trial end: callbacks.prune=null"
        if not isinstance(objective, str) or not isinstance(direction, str):
            raise ValueError(
                f"callbacks.prune needs one objective, and objective={objective}: of several, none "
                f"alone says that a trial is hopeless. {off}"
            )
        if trial is None or storage is None:
            raise ValueError(
                f"callbacks.prune works in a search that keeps its study on a disk, as "
                f"+sweep=tpe with -m does (trial={trial}, hydra.sweeper.storage={storage}). {off}"
            )
        if rule not in ("median", "halving"):
            raise ValueError(f"callbacks.prune.rule={rule!r}; expected median or halving")
        if keep < 2 or warmup_images < 1:
            raise ValueError(
                f"callbacks.prune.keep={keep}, warmup_images={warmup_images}; expected keep of at "
                "least 2 and warmup_images of at least 1"
            )
        try:
            import optuna
        except ImportError as error:
            raise ValueError(
                f"callbacks.prune needs what is not installed ({error}): pip install -e '.[sweep]'"
            ) from error
        self.load, self.handle = optuna.load_study, optuna.trial.Trial
        self.storage, self.study, self.number = storage, study, trial
        self.objective, self.sign = objective, -1.0 if direction == "maximize" else 1.0
        self.rule, self.keep = rule, keep
        self.startup_trials, self.warmup_images = startup_trials, warmup_images
        self.pruned = False
        self._study: Any = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Trainee)
        stop = trainer.is_global_zero and self._report(trainer, pl_module)
        # Every rank has to stop at the same batch, and one of them knows the study.
        stop = bool(trainer.strategy.broadcast(stop))
        ended = trainer.state.fn != "fit" or pl_module.batches_seen >= pl_module.budget
        if stop and not ended:
            self.pruned = trainer.should_stop = True
            if trainer.is_global_zero:
                self._trial().set_user_attr(PRUNED, True)
                seen = f"{pl_module.images_seen:,} images"
                print(f"pruned after {seen} by the {self.rule} rule", flush=True)

    def remarks(self, trainer: Trainer) -> dict[str, Any]:
        """What summary.json says of it."""
        return {"pruned": self.pruned}

    def _report(self, trainer: Trainer, module: Trainee) -> bool:
        """Whether the rule says that the trial is hopeless."""
        if self.objective not in trainer.callback_metrics:
            raise ValueError(
                f"objective={self.objective!r} is not measured at a validation, so nothing can be "
                "pruned by it; callbacks.prune=null, or one of "
                f"{', '.join(sorted(trainer.callback_metrics))}"
            )
        value = float(trainer.callback_metrics[self.objective])
        if not math.isfinite(value):
            return False  # no study takes it; if it stays so, the run fails at its end
        own = self._trial()
        own.report(value, module.images_seen)  # a resumed run tells again what is known
        curves = {
            one.number: {seen: self.sign * x for seen, x in one.intermediate_values.items()}
            for one in own.study.get_trials(deepcopy=False)
        }
        mine = curves.pop(self.number)
        if self.number < self.startup_trials or module.images_seen < self.warmup_images:
            return False
        if self.rule == "median":
            return worse_than_median(mine, list(curves.values()))
        return not promoted(mine, list(curves.values()), first=self.warmup_images, keep=self.keep)

    def _trial(self) -> Any:
        if self._study is None:
            self._study = self.load(study_name=self.study, storage=self.storage)
        (frozen,) = (t for t in self._study.get_trials(deepcopy=False) if t.number == self.number)
        return self.handle(self._study, frozen._trial_id)


def at(curve: Curve, images: int) -> float | None:
    """What a trial had last shown by then; None where it did not come as far."""
    before = [seen for seen in curve if seen <= images]
    return curve[max(before)] if before and max(curve) >= images else None


def first_from(curve: Curve, images: int) -> float | None:
    """The first value of a trial from there on; None where it did not come as far."""
    after = [seen for seen in curve if seen >= images]
    return curve[min(after)] if after else None


def worse_than_median(mine: Curve, others: Sequence[Curve]) -> bool:
    images = max(mine)
    shown = [value for curve in others if (value := at(curve, images)) is not None]
    return bool(shown) and min(mine.values()) > median(shown)


def promoted(mine: Curve, others: Sequence[Curve], *, first: int, keep: int) -> bool:
    """Whether a trial may pass the last rung that it came to."""
    images = max(mine)
    if images < first:
        return True
    rung = first
    while rung * keep <= images:
        rung *= keep
    # Each by its first value at the rung or after it, so that a trial is judged there once.
    own = first_from(mine, rung)
    assert own is not None
    reached = [there for curve in others if (there := first_from(curve, rung)) is not None]
    better = sum(value < own for value in reached)
    return better < max(1, (len(reached) + 1) // keep)
