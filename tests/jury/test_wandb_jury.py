"""What the jury found, as W&B keeps it: read back from offline runs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from PIL import Image

import wandb_offline
from conftest import ROOT, mini_overrides
from salon import checkpoint, run
from salon.callbacks import evaluation_log, wandb_run
from salon.callbacks.evaluation_log import Shown, Source
from salon.callbacks.wandb_run import Opening, WandbOnClock
from salon.job import NOTHING
from salon.jury import __main__ as door
from salon.jury import compare, record
from salon.jury.evaluate import evaluate
from salon.jury.hearing import Sheet
from salon.jury.record import Number, Record
from salon.metrics import oracle
from salon.metrics.oracle import Reading, Seen
from wandb_offline import OfflineRun

ASKED = [
    "images=18", "splits=[test,heldout]", "sets=[seen]", "set_images=6", "train_images=0",
    "price=null", "label=tiny", "wall=2", "sampling_batch=9", "batch_size=9",
]  # fmt: skip
# As many as the grids show; a split's 18 pictures are more.
PANEL = {"test": 16, "heldout": 16, "seen": 6}
GROUP = "studies"


@pytest.fixture
def home(offline_wandb: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nobody is logged in, and nothing is set but what `auto` finds out."""
    home = offline_wandb / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "NETRC", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    yield home
    assert not [path for path in home.rglob("*") if "wandb" in str(path)]
    assert not set(os.environ) & set(wandb_run.HOMES)
    assert wandb.run is None


@pytest.fixture(scope="module")
def place(mini_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judged")


@pytest.fixture
def trained(place: Path, mini_root: Path, home: Path) -> Path:
    """A run of a group, that W&B knows; trained once."""
    folder = place / "run"
    if not (folder / "summary.json").is_file():
        more = ["logger=wandb", f"logger.group={GROUP}", "logger.mode=offline"]
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            run.train(compose("train", [*mini_overrides("cvae/tiny", mini_root), *more]), folder)
    return folder


def asked(trained: Path, *more: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("evaluate", [f"checkpoint={trained}", *ASKED, *more])


@pytest.fixture
def judged(trained: Path) -> Path:
    out = trained / "jury"
    if not out.is_dir():
        evaluate(asked(trained, "logger=wandb", "logger.tags=[first]"))
    return out


def only(folder: Path) -> OfflineRun:
    (found,) = wandb_offline.find(folder)
    return found


def opened(folder: Path) -> WandbOnClock:
    return wandb_run.wandb_logger(
        project="p", entity=None, group=None, name=None, tags=(), notes=None, mode="offline",
        artifacts="references", settings={}, job=NOTHING,
        opening=Opening(folder, "evaluate", {}, resumes=False, strict=True),
    )  # fmt: skip


def table_of(told: OfflineRun, key: str) -> dict[str, Any]:
    [table] = [row[key] for row in told.history if key in row]
    contents: dict[str, Any] = json.loads((told.folder / "files" / table["path"]).read_text())
    return contents


# -- an evaluation ---------------------------------------------------------------------------------


def test_an_evaluation_is_a_run_of_its_own_in_the_group_of_the_trained_one(
    judged: Path, trained: Path
) -> None:
    told = only(judged)
    assert (told.job_type, told.group, told.project) == ("evaluate", GROUP, "salon")
    assert (told.exit_code, told.name, told.tags) == (0, "tiny", ["first"])
    assert told.run_id != only(trained).run_id


def test_its_config_is_protocol_settings_and_checkpoint(judged: Path, trained: Path) -> None:
    config = only(judged).config
    written = record.load(judged / "record.json")
    assert config["protocol"] == written.protocol
    assert config["settings"] == written.settings
    assert config["settings"]["ema"] is True
    assert (config["label"], config["family"], config["seed"]) == ("tiny", "VAE", 0)
    assert config["checkpoint"] == {
        "path": str(trained / checkpoint.LAST),
        "sha256": checkpoint.digest(trained),
        "training_run": only(trained).run_id,
    }
    assert config["asked"]["splits"] == ["test", "heldout"]
    assert config["asked"]["price"] is None
    assert "${" not in json.dumps(config)


def test_its_summary_is_every_number_with_its_bounds(judged: Path) -> None:
    summary = only(judged).summary
    wanted: dict[str, float] = {"images_seen": 32}
    for split, numbers in record.load(judged / "record.json").metrics.items():
        for name, number in numbers.items():
            wanted[f"{split}/{name}"] = number.value
            if number.low is not None and number.high is not None:
                wanted[f"{split}/{name}_low"] = number.low
                wanted[f"{split}/{name}_high"] = number.high
    assert {"test/prompt_accuracy_low", "heldout/fd", "seen/prompt_accuracy_high"} <= set(wanted)
    assert "test/fd_low" not in wanted
    told = {k: v for k, v in summary.items() if not k.startswith(("_", "media/", "tables/"))}
    assert told == wanted
    assert summary["test/prompt_accuracy_low"] < summary["test/prompt_accuracy_high"]


def test_the_panel_is_a_table(judged: Path) -> None:
    told = only(judged)
    contents = table_of(told, "tables/panel")
    assert contents["columns"] == ["caption", "split", "seed", "image", "reading"]
    rows = contents["data"]
    assert [(row[1], row[2]) for row in rows] == [
        (split, i) for split, number in PANEL.items() for i in range(number)
    ]
    wall = record.load(judged / "record.json").wall
    assert [row[0] for row in rows[:2]] == [one.caption for one in wall]
    assert all(isinstance(row[4], str) and " on " in row[4] for row in rows)
    ((files,),) = [v for name, v in told.artifacts.items() if "tablespanel" in name]
    for file in files.values():
        assert judged in file.parents, "what waits for a sync is in the evaluation's folder"
    waiting = json.loads(files["tables/panel.table.json"].read_text())["data"]
    assert len(waiting) == len(rows)
    for row in waiting:
        assert Image.open(files[row[3]["path"]]).size == (16, 16)


def test_the_same_pictures_are_media_of_the_run(judged: Path) -> None:
    told = only(judged)
    wall = record.load(judged / "record.json").wall
    for split, number in PANEL.items():
        [(seen, media)] = told.series(f"media/{split}")
        assert (seen, media["count"], len(media["filenames"])) == (32, number, number)
        for name in media["filenames"]:
            assert Image.open(told.folder / "files" / name).size == (16, 16)
    [(_, media)] = told.series("media/test")
    assert media["captions"][1] == f"{wall[1].caption} (seed 1)"
    drawn = Image.open(told.folder / "files" / media["filenames"][1]).convert("RGB")
    (judged / "one.png").write_bytes(wall[1].png)
    assert drawn.tobytes() == Image.open(judged / "one.png").convert("RGB").tobytes()


def test_what_waits_for_a_sync_is_not_taken_for_a_record(judged: Path) -> None:
    assert [one.label for one in compare.found_in([str(judged)])] == ["tiny"]


def test_without_an_account_it_says_how_to_upload_and_logs_nothing_unasked(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice into a copied run folder, where the first evaluation is no training run."""
    copy = tmp_path / "a copy"
    (copy / "checkpoints").mkdir(parents=True)
    (copy / checkpoint.LAST).write_bytes((trained / checkpoint.LAST).read_bytes())
    few = ["splits=[test]", "sets=[]"]
    evaluate(asked(trained, f"out={tmp_path / 'unasked'}", *few))
    assert "W&B" not in capsys.readouterr().out
    assert not (tmp_path / "unasked" / "wandb").exists()
    for _ in range(2):
        cfg = asked(trained, *few, "logger=wandb", "logger.group=mine")
        cfg.checkpoint = cfg.out = str(copy)
        evaluate(cfg)
    told = capsys.readouterr().out
    found = wandb_offline.find(copy)
    assert len(found) == 2
    for one in found:
        assert f"offline (nobody is logged in); upload later: wandb sync '{one.folder}'" in told
        assert one.group == "mine"
        assert one.config["checkpoint"]["training_run"] is None
        assert one.config["checkpoint"]["sha256"] == checkpoint.digest(trained)


def test_disabled_logs_nothing(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["splits=[test]", "sets=[]", "logger=wandb", "logger.mode=disabled"]
    evaluate(asked(trained, f"out={tmp_path / 'out'}", *more))
    assert "W&B: disabled" in capsys.readouterr().out
    assert not wandb_offline.find(tmp_path / "out")


# -- what may go wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["init", "folder", "log", "open"])
def test_a_failing_wandb_loses_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], how: str,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    written: list[bool] = []
    init = wandb.init

    def seen(**given: Any) -> Any:
        written.append(all((out / name).is_file() for name in ("metrics.json", "record.json")))
        if how == "init":
            raise wandb.errors.CommError("no server")
        return init(**given)

    def broken(*_: Any, **__: Any) -> Any:
        raise OSError("no space left")

    monkeypatch.setattr(wandb, "init", seen)
    out.mkdir()
    if how == "folder":
        (out / "wandb").write_text("a file where a folder should be")
    if how == "log":
        monkeypatch.setattr(wandb, "Table", broken)
    if how == "open":
        (tmp_path / "theirs").mkdir()
        theirs = opened(tmp_path / "theirs")
        written.clear()
    told = evaluate(asked(trained, f"out={out}", "splits=[test]", "sets=[]", "logger=wandb"))
    said = {
        "init": "CommError: no server", "folder": "Error: ", "log": "OSError: no space left",
        "open": "wandb.finish() closes it",
    }  # fmt: skip
    (line,) = [row for row in capsys.readouterr().out.splitlines() if row.startswith("W&B")]
    assert "NOT logged" in line
    assert said[how] in line
    assert written == ([] if how == "open" else [True])
    assert record.load(out / "record.json").metrics == told
    assert (out / "metrics.json").is_file()
    if how == "log":
        assert only(out).exit_code == 1
    if how == "open":
        assert wandb.run is theirs.experiment
        theirs.close(failed=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("logger.mode=of", "logger.mode='of'; expected one of auto, online"),
        ("+logger.grup=x", "'logger.grup'; the nearest known one is 'logger.group'"),
    ],
)
def test_a_mistake_is_named_before_anything_is_judged(
    trained: Path, tmp_path: Path, change: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        evaluate(asked(trained, f"out={tmp_path / 'out'}", "logger=wandb", change))
    assert not (tmp_path / "out").exists()


# -- the parts -------------------------------------------------------------------------------------


class OnlineRun:
    """As much of an online run as linking asks for."""

    offline = disabled = False

    def __init__(self) -> None:
        self.used: list[wandb.Artifact] = []

    def use_artifact(self, artifact: wandb.Artifact) -> None:
        self.used.append(artifact)


def test_online_the_checkpoint_is_what_the_run_used(tmp_path: Path) -> None:
    file = tmp_path / "a b" / "last.ckpt"
    file.parent.mkdir()
    file.write_bytes(b"weights")
    online = OnlineRun()
    evaluation_log.link(online, Source(file, "f" * 64, "abc"))
    (used,) = online.used
    assert (used.name, used.type) == ("checkpoint-" + "f" * 10, "model")
    assert used.metadata == {"sha256": "f" * 64, "training_run": "abc"}
    (entry,) = used.manifest.entries.values()
    assert (entry.path, entry.ref) == ("last.ckpt", file.as_uri())
    online.offline, online.used = True, []  # type: ignore[misc]
    evaluation_log.link(online, Source(file, "f" * 64, None))
    assert online.used == []


def test_the_run_that_trained_is_the_last_begun(tmp_path: Path) -> None:
    assert evaluation_log.training_run(tmp_path) is None
    for name in (
        "offline-run-20250101_101010-later", "run-20240101_101010-zzz", "latest-run", "data",
        "debug-run-20260101_101010-no",
    ):  # fmt: skip
        (tmp_path / "wandb" / name).mkdir(parents=True)
    assert evaluation_log.training_run(tmp_path) == "later"


def test_readings_are_spelled_out_where_prompts_are_exact() -> None:
    seen = Seen("circle", "red", "small", 0.1, 0.5, 0.9)
    assert evaluation_log.spelled(Reading("white", (seen,), 2)) == (
        "small red circle (left), 2 malformed on white"
    )
    assert evaluation_log.spelled(Reading(None, (), 0)) == "nothing on no known background"
    images = torch.full((2, 3, 16, 16), 0.96)
    exact = Sheet(images, ["a", "b"], {"prompt_accuracy": Number(0.0)})
    shown = evaluation_log.panel({"one": exact, "two": Sheet(images, ["c", "d"], {})})
    assert [one[:3] for one in shown] == [
        ("a", "one", 0), ("b", "one", 1), ("c", "two", 0), ("d", "two", 1),
    ]  # fmt: skip
    (reading,) = oracle.read_all(images[:1])
    assert [one.reading for one in shown] == [evaluation_log.spelled(reading)] * 2 + [None] * 2


def test_a_panel_that_is_exact_in_part_is_a_table(home: Path, tmp_path: Path) -> None:
    """W&B refuses a column whose values have several types."""
    blank = Image.new("RGB", (4, 4))
    shown = [Shown("a", "test", 0, blank, None), Shown("b", "seen", 0, blank, "nothing on white")]
    one = Record("x", "GAN", 0, "last", {}, {}, {"test": {"fd": Number(2.0)}})

    source = Source(tmp_path / "x.ckpt", "0" * 64, None)
    source.path.write_bytes(b"weights")

    def fill(logger: WandbOnClock) -> None:
        evaluation_log.log_evaluation(logger, one, shown, source)

    line = evaluation_log.keep(lambda: opened(tmp_path), fill)
    told = only(tmp_path)
    assert line.endswith(f"wandb sync {told.folder}")
    rows = table_of(told, "tables/panel")["data"]
    assert [row[4] for row in rows] == [None, "nothing on white"]
    assert told.summary["test/fd"] == 2
    assert "images_seen" not in told.summary, "not known, which is not 0"
    name = "checkpoint-" + "0" * 10
    assert (told.used, told.references[name]) == ({name}, [{"x.ckpt": source.path.as_uri()}])


# -- a report --------------------------------------------------------------------------------------


@pytest.fixture
def reported(
    judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> tuple[Path, str]:  # fmt: skip
    """Two seeds, at the door; what it prints."""
    told = json.loads((judged / "record.json").read_text()) | {"seed": 1}
    told["metrics"]["test"]["fd"]["value"] += 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "record.json").write_text(json.dumps(told))
    out = tmp_path / "report"
    words = [
        "report", str(judged), str(tmp_path / "other"), f"out={out}", "title=GANs & all",
        "logger=wandb", "logger.group=mine", "logger.mode=offline",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["jury", *words])
    capsys.readouterr()
    door.main()
    return out, capsys.readouterr().out


def test_a_report_is_a_run_of_its_own(reported: tuple[Path, str]) -> None:
    out, said = reported
    told = only(out)
    assert (told.job_type, told.group, told.name, told.exit_code) == (
        "report", "mine", "GANs & all", 0,
    )  # fmt: skip
    assert told.config["title"] == "GANs & all"
    assert told.config["labels"] == ["tiny"]
    assert told.config["protocol"]["images"] == 18
    page, line = said.splitlines()
    assert page == str(out / "index.html")
    assert line.startswith("W&B: offline")
    assert f"wandb sync {told.folder}" in line


def test_its_leaderboard_is_a_table(reported: tuple[Path, str], judged: Path) -> None:
    assert "images_seen" not in only(reported[0]).summary
    contents = table_of(only(reported[0]), "tables/leaderboard")
    columns = contents["columns"]
    assert columns[:4] == ["model", "family", "seeds", "test/prompt_accuracy"]
    assert {"test/fd", "test/fd_low", "test/fd_high", "heldout/prompt_accuracy"} <= set(columns)
    (row,) = contents["data"]
    told = dict(zip(columns, row, strict=True))
    assert (told["model"], told["family"], told["seeds"]) == ("tiny", "VAE", "2")
    one = record.load(judged / "record.json").metrics["test"]["fd"].value
    assert told["test/fd"] == pytest.approx(one + 0.5)
    # Student's t of two seeds that differ by 1: 12.71 times 0.5.
    assert told["test/fd_high"] - told["test/fd_low"] == pytest.approx(12.71, abs=0.01)


def test_its_files_are_an_artifact_with_the_records(reported: tuple[Path, str]) -> None:
    out, _ = reported
    told = only(out)
    name = "report-gans-all"
    assert {n: t for n, t in told.types.items() if not n.startswith("run-")} == {name: "report"}
    (files,) = told.artifacts[name]
    assert set(files) == {"index.html", "leaderboard.csv", "leaderboard.md"}
    for inside, file in files.items():
        assert file.read_bytes() == (out / inside).read_bytes()
        assert out in file.parents
    metadata = told.metadata[name]
    assert metadata["protocol"]["images"] == 18
    assert [(one["label"], one["seed"]) for one in metadata["records"]] == [
        ("tiny", 0),
        ("tiny", 1),
    ]
    assert metadata["records"][0]["metrics"]["test"]["prompt_accuracy"]["n"] == 18
    assert "wall" not in metadata["records"][0]


@pytest.mark.parametrize("words", [[], ["logger=csv"]])
def test_a_report_that_is_not_logged(
    judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    argv = ["jury", "report", str(judged), f"out={tmp_path / 'report'}", *words]
    monkeypatch.setattr(sys, "argv", argv)
    door.main()
    assert "W&B" not in capsys.readouterr().out
    assert not (tmp_path / "report" / "wandb").exists()


def test_a_report_that_wandb_refuses_is_there(
    judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def init(**_: Any) -> None:
        raise wandb.errors.CommError("no server")

    monkeypatch.setattr(wandb, "init", init)
    argv = ["jury", "report", str(judged), f"out={tmp_path / 'report'}", "logger=wandb"]
    monkeypatch.setattr(sys, "argv", argv)
    door.main()
    assert "NOT logged (CommError: no server)" in capsys.readouterr().out
    assert (tmp_path / "report" / "index.html").is_file()
