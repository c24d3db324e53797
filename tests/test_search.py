"""A search as a user sees it: its trials, its end, its going on, its failures, its report."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

import studies
import toy
import wandb_offline
from conftest import MINI_MODELS, ROOT, mini_overrides
from salon import checks, doors, run
from salon.callbacks import prune
from salon.callbacks.prune import Prune
from salon.config import build
from salon.search import __main__ as door_of_search
from salon.search import hook, report
from salon.search.importance import importances
from salon.search.study import read
from test_conf import options, part_of
from test_run import door

SEARCHES = ["tpe", "random", "pareto", "grid"]
OFFLINE = {"WANDB_MODE": "offline"}


def search(sweep: str, root: Path, folder: Path, *more: str) -> Any:
    """`python train.py -m +sweep=...` on the miniature world."""
    given = [*mini_overrides("cvae/tiny", root), f"hydra.sweep.dir={folder}", *more]
    return door("train.py", "-m", f"+sweep={sweep}", *given, env={**os.environ, **OFFLINE})


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "study.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


# -- real searches ---------------------------------------------------------------------------------


def test_a_search_fails_goes_on_and_reports(mini_root: Path, tmp_path: Path) -> None:
    """Of the first three trials that this seed draws, one may use -1 operations."""
    folder = tmp_path / "study"
    given = [
        "budget.flops=choice(-1,1e15)", "objective=val/loss", "direction=minimize",
        "hydra.sweeper.sampler.seed=4", "logger=wandb", "callbacks.samples=null",
    ]  # fmt: skip
    done = search("random", mini_root, folder, *given, "hydra.sweeper.n_trials=3")
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    first = table(folder)
    states = [row["state"] for row in first]
    assert len(states) == 3
    assert {"complete", "failed"} == set(states)
    for row in first:
        assert (row["state"] == "failed") == (row["budget.flops"] == "-1")
        assert ("budget.flops=-1; expected" in row["error"]) == (row["state"] == "failed")
        assert row["folder"] == str(folder / f"trial_{row['trial']}")
    finished = {path: path.stat().st_mtime_ns for path in folder.rglob("summary.json")}
    assert len(finished) == states.count("complete")

    # The same command adds what is missing to n_trials, draws something new, overwrites nothing.
    done = search("random", mini_root, folder, *given, "hydra.sweeper.n_trials=4")
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    second = table(folder)
    assert [{**row} for row in second[:3]] == first
    assert [row["trial"] for row in second] == ["0", "1", "2", "3"]
    assert len({row["model.optimizer.lr"] for row in second}) == 4
    assert finished == {path: path.stat().st_mtime_ns for path in finished}

    # The best trial's command trains the same run.
    study = read(folder)
    (best,) = study.best()
    values = [float(row["val/loss"]) for row in second if row["state"] == "complete"]
    assert best.values == (min(values),)
    words = report.again(study, best)[2:]
    assert " ".join(report.again(study, best)[:3]) in done.stdout
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = run.to_plain(compose("train", words))
    trained = OmegaConf.to_container(OmegaConf.load(best.folder / "config.yaml"))
    assert isinstance(trained, dict)
    for key in run.DECISIVE:
        assert cfg[key] == trained[key], key

    # In W&B: the trials and, for each time, the search, in one group.
    (trial,) = wandb_offline.find(best.folder)
    told = wandb_offline.find(folder)
    assert [one.job_type for one in told] == ["search", "search"]
    assert {one.group for one in told} == {trial.group} == {"random_cvae/tiny"}
    assert told[-1].summary["trials"] == 4
    assert told[-1].summary["best/val/loss"] == pytest.approx(min(values))
    assert told[-1].exit_code == 0
    (files,) = told[-1].artifacts[f"search-{told[-1].run_id}"]
    assert set(files) == {"index.html", "study.csv"}

    # By command, for a search that may still run.
    (folder / "index.html").unlink()
    again = door("-m", "salon.search", "report", str(folder))
    assert again.returncode == 0, again.stderr
    assert "4 trials" in again.stdout
    assert (folder / "index.html").is_file()
    assert len(wandb_offline.find(folder)) == 2, "a look makes no W&B run"


def test_two_objectives_make_a_front(mini_root: Path, tmp_path: Path) -> None:
    done = search(
        "pareto", mini_root, tmp_path, "hydra.sweeper.n_trials=2", "model.width=choice(16,64)",
        "callbacks.samples=null",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    study = read(tmp_path)
    assert study.objectives == ("quality/prompt_accuracy", "cost/sample_flops_per_image")
    assert study.directions == ("maximize", "minimize")
    for one in study.trials:
        metrics = json.loads((one.folder / "summary.json").read_text())["metrics"]
        assert one.values == tuple(metrics[name] for name in study.objectives)
    assert "The front" in (tmp_path / "index.html").read_text()


def test_a_grid_needs_no_optuna_and_keeps_what_is_finished(mini_root: Path, tmp_path: Path) -> None:
    given = ["model.optimizer.lr=1e-3,3e-3", "callbacks.ema.decay=0.9", "callbacks.samples=null"]
    done = search("grid", mini_root, tmp_path, *given, "objective=val/loss", "direction=minimize")
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    rows = table(tmp_path)
    assert [(row["model.optimizer.lr"], row["state"]) for row in rows] == [
        ("0.001", "complete"), ("0.003", "complete"),
    ]  # fmt: skip
    assert float(rows[0]["val/loss"]) != float(rows[1]["val/loss"])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("last.ckpt")}
    assert len(before) == 2
    done = search("grid", mini_root, tmp_path, *given, "objective=val/loss", "direction=minimize")
    assert done.returncode == 0, done.stderr[-3000:]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert table(tmp_path) == rows


# -- configs ---------------------------------------------------------------------------------------


def composed(sweep: str, model: str) -> DictConfig:
    cfg = compose("train", [f"+sweep={sweep}", f"model={model}"], return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.choices.model = model
    return cfg


@pytest.mark.parametrize("sweep", options("sweep"))
def test_every_search_composes_and_says_its_command(hydra_conf: None, sweep: str) -> None:
    cfg = composed(sweep, "cvae")
    assert checks.listed(cfg.objective)
    checks.check_direction(cfg)
    head = (ROOT / "conf/sweep" / f"{sweep}.yaml").read_text().split("\ndefaults")[0]
    assert "python train.py -m +sweep=" in head
    assert "xpect" in head, "the header says what to expect"


@pytest.mark.parametrize(
    ("sweep", "model"),
    [(sweep, "cvae") for sweep in SEARCHES]
    + [("tpe", model) for model in [*MINI_MODELS, "df_gan/tiny_r3"]],
)
def test_what_is_searched_is_in_the_config(hydra_conf: None, sweep: str, model: str) -> None:
    cfg = composed(sweep, model)
    made = build_hook(cfg)
    made._widen(cfg)
    params = cfg.hydra.sweeper.params
    assert len(params) >= 2
    for key, values in params.items():
        assert OmegaConf.select(cfg, key) is not None, key
        parsed = OverridesParser.create().parse_override(f"{key}={values}")
        assert parsed.is_sweep_override(), key


def build_hook(cfg: DictConfig) -> hook.Search:
    node = {key: value for key, value in cfg.hydra.callbacks.search.items() if key != "_target_"}
    OmegaConf.set_struct(cfg, False)
    OmegaConf.set_readonly(cfg.hydra, False)
    return hook.Search(**node)


@pytest.mark.parametrize("model", sorted(MINI_MODELS))
def test_the_ends_of_a_space_build(hydra_conf: None, model: str) -> None:
    """On the meta device, with the first and with the last choice of everything."""
    cfg = composed("tpe", model)
    build_hook(cfg)._widen(cfg)
    choices = {
        key: list(one.sweep_iterator())
        for key, values in cfg.hydra.sweeper.params.items()
        if (one := OverridesParser.create().parse_override(f"{key}={values}")).is_choice_sweep()
    }
    for end in (0, -1):
        given = [f"{key}={values[end]}" for key, values in choices.items()]
        small = compose("train", ["+sweep=tpe", f"model={model}", *given])
        with torch.device("meta"):
            parts = {
                str(key): part_of(small, node)
                for key, node in small.model.items()
                if isinstance(node, DictConfig) and "_stage_" in node
            }
            build(small.model, "model", **parts)


def test_the_command_line_wins_over_a_familys_space(hydra_conf: None) -> None:
    cfg = composed("tpe", "cvae")
    made = build_hook(cfg)
    cfg.hydra.sweeper.params["model.beta"] = "choice(1,2)"
    made._widen(cfg)
    assert cfg.hydra.sweeper.params["model.beta"] == "choice(1,2)"
    assert "model.width" in cfg.hydra.sweeper.params


# -- objective and direction -----------------------------------------------------------------------


def test_an_objective_is_a_number_or_several(mini: Callable[..., DictConfig]) -> None:
    summary = {"metrics": {"a": 1.0, "b": 2, "nan": float("nan")}}
    assert run.objective(mini("cvae/tiny"), summary) is None
    assert run.objective(mini("cvae/tiny", "objective=a"), summary) == 1.0
    assert run.objective(mini("cvae/tiny", "objective=[b,a]"), summary) == (2.0, 1.0)
    with pytest.raises(ValueError, match=r"'c' was not measured.*a, b, nan"):
        run.objective(mini("cvae/tiny", "objective=[a,c]"), summary)
    with pytest.raises(ValueError, match=r"'nan' is nan: this run diverged"):
        run.measured("nan", summary["metrics"])


def test_a_direction_for_each_objective(mini: Callable[..., DictConfig]) -> None:
    checks.check_direction(mini("cvae/tiny", "objective=a"))
    checks.check_direction(mini("cvae/tiny", "objective=[a,b]", "direction=[minimize,maximize]"))
    with pytest.raises(ValueError, match=r"direction=up; expected maximize or minimize"):
        checks.check_direction(mini("cvae/tiny", "objective=a", "direction=up"))
    for words in (["objective=[a,b]", "direction=minimize"], ["objective=a", "trial=3"]):
        with pytest.raises(ValueError, match="expected one for each"):
            checks.check_direction(mini("cvae/tiny", *words))


def asked(folder: Path, direction: str = "minimize", rate: float = 0.25) -> DictConfig:
    return OmegaConf.create(
        {
            "direction": direction,
            "hydra": {
                "callbacks": {"search": {"max_failure_rate": rate}}, "sweep": {"dir": str(folder)},
            },
        }
    )  # fmt: skip


def test_a_search_whose_directions_disagree_ends(tmp_path: Path) -> None:
    study = optuna.create_study(direction="minimize")
    hook.numbered(asked(tmp_path), study.ask())
    with pytest.raises(ValueError, match=r"direction=maximize, but.*is minimize"):
        hook.numbered(asked(tmp_path, "maximize"), study.ask())


def test_a_search_ends_where_too_many_trials_fail(tmp_path: Path) -> None:
    study = optuna.create_study()
    failed = optuna.trial.TrialState.FAIL
    for state in (None, failed, None, None):
        trial = study.ask()
        hook.numbered(asked(tmp_path), trial)
        assert trial.params == {"trial": trial.number}
        study.tell(trial, *([None, state] if state else [1.0]))
    hook.numbered(asked(tmp_path), study.ask())  # 1 of 4
    study.tell(study.ask(), state=failed)
    with pytest.raises(ValueError, match=r"2 of 5 trials failed.*max_failure_rate=0.25"):
        hook.numbered(asked(tmp_path), study.ask())
    hook.numbered(asked(tmp_path, rate=0.5), study.ask())


# -- pruning ---------------------------------------------------------------------------------------


def crafted(folder: Path, curves: list[dict[int, float]]) -> str:
    """A study with these trials, and one more that runs."""
    storage = f"sqlite:///{folder}/study.db"
    study = optuna.create_study(study_name="s", storage=storage, direction="maximize")
    for curve in curves:
        trial = study.ask()
        for seen, value in curve.items():
            trial.report(value, seen)
        study.tell(trial, max(curve.values()))
    study.ask()
    return storage


def pruner(storage: str | None, trial: int | None, **changes: Any) -> Prune:
    given = {
        "study": "s", "objective": "val/loss", "direction": "maximize", "rule": "median",
        "startup_trials": 1, "warmup_images": 8, "keep": 2,
    }  # fmt: skip
    return Prune(storage=storage, trial=trial, **{**given, **changes})  # type: ignore[arg-type]


# A toy sees 4 images a batch, and its val/loss is about 0: hopeless beside trials that had 1.
@pytest.mark.parametrize(
    ("others", "changes", "stopped"),
    [
        ([{8: 1.0, 32: 1.0}], {}, 8),
        ([{8: -1.0, 32: -1.0}], {}, None),  # better than the median
        ([{8: 1.0, 32: 1.0}], {"direction": "minimize"}, None),
        ([{8: 1.0, 32: 1.0}], {"warmup_images": 16}, 16),
        ([{8: 1.0, 32: 1.0}], {"startup_trials": 2}, None),
        ([{6: 1.0, 13: 1.0, 40: 1.0}], {}, 8),  # other moments: read at the last one before
        ([{8: 1.0}], {"warmup_images": 16}, None),  # it did not come as far
        ([{8: 1.0, 32: 1.0}] * 2 + [{8: -1.0, 32: -1.0}] * 3, {"startup_trials": 1}, None),
        ([{8: 1.0, 32: 1.0}], {"rule": "halving"}, 8),
        ([{8: 1.0, 32: 1.0}] + [{8: -1.0, 32: -1.0}] * 2, {"rule": "halving"}, None),  # 2nd of 4
        ([{8: 1.0, 32: 1.0}] * 2 + [{8: -1.0, 32: -1.0}], {"rule": "halving"}, 8),  # 3rd of 4
        ([{8: -1.0, 16: 1.0}], {"rule": "halving"}, 16),  # at the next rung
    ],
)
def test_a_hopeless_trial_stops(
    tmp_path: Path,
    others: list[dict[int, float]],
    changes: dict[str, Any],
    stopped: int | None,
) -> None:
    storage, number = crafted(tmp_path, others), len(others)
    callback, model = pruner(storage, number, **changes), toy.Toy()
    toy.fit(model, [callback], batches=8, validate_every=2)
    told = optuna.load_study(study_name="s", storage=storage).trials[number]
    assert model.images_seen == (stopped or 32)
    assert callback.pruned == (stopped is not None)
    assert told.user_attrs.get("pruned") == (True if stopped else None)
    assert list(told.intermediate_values) == list(range(8, (stopped or 32) + 1, 8))


def test_the_last_validation_prunes_nothing(tmp_path: Path) -> None:
    storage = crafted(tmp_path, [{8: -1.0, 16: 1.0, 32: 1.0}])
    callback = pruner(storage, 1)
    toy.fit(toy.Toy(), [callback], batches=4, validate_every=2)
    assert not callback.pruned


def test_medians_are_of_what_was_shown_by_then() -> None:
    assert prune.at({4: 1.0, 12: 2.0}, 8) == 1.0
    assert prune.at({4: 1.0, 12: 2.0}, 12) == 2.0
    assert prune.at({4: 1.0}, 8) is None
    assert prune.at({12: 1.0}, 8) is None
    assert not prune.worse_than_median({8: 5.0}, [])
    assert not prune.worse_than_median({4: 0.0, 8: 5.0}, [{8: 1.0}]), "the best so far counts"
    assert prune.worse_than_median({4: 2.0, 8: 5.0}, [{8: 1.0}])


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_pruned_run_says_so_and_returns_what_it_had(
    mini: Callable[..., DictConfig], tmp_path: Path, ranks: int
) -> None:
    storage = crafted(tmp_path, [{16: -1.0, 32: -1.0}])
    node = {
        "_target_": "salon.callbacks.prune.Prune", "storage": storage, "study": "s", "trial": 1,
        "objective": "val/loss", "direction": "minimize", "rule": "median", "startup_trials": 1,
        "warmup_images": 1, "keep": 3,
    }  # fmt: skip
    several = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={ranks}"]
    several = [*several, "trainer.precision=32-true"] if ranks > 1 else []
    cfg = mini("cvae/tiny", "objective=val/loss", "direction=minimize", "resume=auto", *several)
    OmegaConf.set_struct(cfg, False)
    cfg.callbacks.prune = node
    value = run.train(cfg, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["pruned"] is True
    assert summary["batches"] == 2
    assert value == summary["metrics"]["val/loss"]
    told = optuna.load_study(study_name="s", storage=storage).trials[1]
    assert told.intermediate_values == {16 * ranks: pytest.approx(value)}
    assert run.train(cfg, tmp_path / "run") == value, "it is finished"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": ["a", "b"], "direction": ["minimize"] * 2}, r"needs one objective.*=null"),
        ({"objective": None}, "needs one objective"),
        ({"trial": None}, r"works in a search.*callbacks\.prune=null"),
        ({"storage": None}, "keeps its study on a disk"),
        ({"rule": "best"}, "'best'; expected median or halving"),
        ({"keep": 1}, "keep=1"),
    ],
)
def test_pruning_that_makes_no_sense_is_a_mistake(changes: dict[str, Any], message: str) -> None:
    given = {"storage": "sqlite:///x.db", "trial": 1, **changes}
    with pytest.raises(ValueError, match=message):
        pruner(given.pop("storage"), given.pop("trial"), **given)


def test_an_objective_that_validations_do_not_measure_is_a_mistake(tmp_path: Path) -> None:
    callback = pruner(crafted(tmp_path, []), 0, objective="cost/seconds")
    with pytest.raises(ValueError, match=r"'cost/seconds' is not measured.*val/loss"):
        toy.fit(toy.Toy(), [callback])


# -- the report ------------------------------------------------------------------------------------


def test_a_report_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    studies.study(tmp_path, trials=12)
    report.write(tmp_path)
    told = capsys.readouterr().out
    assert "12 trials: 9 complete, 2 pruned, 1 failed" in told
    study = read(tmp_path)
    (best,) = study.best()
    assert best.values == (max(one.values[0] for one in study.complete if one.values),)
    assert f"best: trial {best.number} " in told
    rate = best.params[studies.LR]
    assert f"python train.py {studies.WIDTH}=" in told.replace("'", "")
    assert f"{studies.LR}={rate} model=cvae seed=1\n" in told
    page = (tmp_path / "index.html").read_text()
    assert page.count("<svg") == 4
    assert "http" not in page.replace("http-equiv", ""), "it fetches nothing"
    rows = table(tmp_path)
    assert [row["state"] for row in rows].count("pruned") == 2
    assert rows[4]["images_seen"] == "2000"


def test_a_pruned_trial_is_never_the_best(tmp_path: Path) -> None:
    studies.study(tmp_path, trials=6)
    study = read(tmp_path)
    (best,) = study.best()
    marked = [
        one._replace(state="pruned") if one.number == best.number else one for one in study.trials
    ]
    (second,) = study._replace(trials=marked).best()
    assert second.number != best.number


def test_a_front_is_what_none_dominates(tmp_path: Path) -> None:
    studies.study(
        tmp_path, trials=10, objectives=["accuracy", "cost"], directions=["maximize", "minimize"]
    )
    study = read(tmp_path)
    front = {one.number for one in study.best()}
    for one in study.complete:
        accuracy, cost = one.values or ()
        beaten = any(
            a >= accuracy and c <= cost and (a, c) != (accuracy, cost)
            for a, c in (other.values or () for other in study.complete)
        )
        assert beaten == (one.number not in front)
    assert 1 < len(front) < len(study.complete)
    report.write(tmp_path)
    assert "The front" in (tmp_path / "index.html").read_text()


def test_an_empty_search_has_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    studies.study(tmp_path, trials=1)
    report.write(tmp_path)
    assert "no trial is complete yet" in capsys.readouterr().out


def test_what_a_search_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"is no search \(search\.json is not there\)"):
        read(tmp_path)
    for words in ([], ["report"], ["reprot", "x"], ["report", "x", "--wnadb"]):
        monkeypatch.setattr(sys, "argv", ["search", *words])
        with pytest.raises(SystemExit) as ended:
            door_of_search.main()
        assert ended.value.code == 2


def test_without_the_extra_the_message_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies.study(tmp_path, trials=2)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[sweep\]'"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[sweep\]'"):
        pruner("sqlite:///x", 1)
    assert "pip install -e '.[sweep]'" in str(doors._no_such_option("hydra/sweeper/optuna.yaml"))


NO_PLUGIN = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "optuna" or "hydra_optuna_sweeper" in name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
sys.argv = ["train.py", "-m", "+sweep=tpe", "model=cvae"]
sys.path.insert(0, ".")
runpy.run_path("train.py", run_name="__main__")
"""


def test_a_search_without_the_extra_is_a_message() -> None:
    done = door("-c", NO_PLUGIN)
    assert done.returncode == 2, done.stderr
    assert "pip install -e '.[sweep]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_importance_is_of_ranks_and_knows_chance() -> None:
    generator = np.random.default_rng(1)
    params = [
        {
            "lr": 10 ** generator.uniform(-5, -1), "noise": generator.uniform(),
            "kind": str(generator.choice(["a", "b"])), "fixed": 3,
        }
        for _ in range(40)
    ]  # fmt: skip
    values = [-one["lr"] for one in params]
    found = {one.key: one for one in importances(params, values)}
    assert "fixed" not in found
    assert 0.9 < found["lr"].strength < 1
    assert found["lr"].sign == -1
    assert found["noise"].strength < found["noise"].chance
    # Of three groups among 40, the ratio's square has nearly a Beta(1, 18.5) distribution.
    assert found["noise"].chance == pytest.approx((1 - 0.05 ** (1 / 18.5)) ** 0.5, abs=0.02)
    humped = {
        one.key: one for one in importances(params, [-abs(np.log10(p["lr"]) + 3) for p in params])
    }
    assert humped["lr"].strength > 0.7 > humped["lr"].chance, "a best value in the middle shows"
    by_kind = [float(one["kind"] == "a") for one in params]
    (first, *_) = importances(params, by_kind)
    assert (first.key, first.sign) == ("kind", 0)
    assert first.strength == pytest.approx(1)
    assert importances(params[:3], values[:3]) == []
