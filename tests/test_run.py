"""A run as a user sees it: its folder, its repetition, its interruption, its mistakes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from conftest import ROOT, mini_overrides
from salon import checkpoint, run, stages
from tars import encode, noise, write_shard

MODEL = "latent_diffusion/tiny"
LAST = "checkpoints/last.ckpt"


def door(script: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A script as a user starts it."""
    return subprocess.run(
        [sys.executable, script, *arguments], cwd=ROOT, capture_output=True, text=True,
        timeout=600, **options,
    )  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    contents = checkpoint.read(folder)
    return {
        **contents["state_dict"],
        **{f"ema.{k}": v for k, v in contents["ema"]["average"].items()},
    }


def assert_same(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


@pytest.fixture(scope="module")
def finished(mini_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of train.py, from its door to its summary."""
    folder = tmp_path_factory.mktemp("finished")
    done = door("train.py", *mini_overrides(MODEL, mini_root), f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def test_a_run_folder_holds_what_the_readme_says(finished: Path) -> None:
    for name in ("config.yaml", LAST, "metrics.csv", "summary.json", "samples"):
        assert (finished / name).exists(), name
    assert "${" not in (finished / "config.yaml").read_text()
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["batches"] == 4
    assert summary["images_seen"] == 32
    assert {"val/loss", "quality/prompt_accuracy", "cost/seconds"} <= set(summary["metrics"])
    assert len(summary["stages"]) == 2, "the text tower and the autoencoder, apart from the run"
    assert all(told["flops"] > 0 and told["images"] == 16 for told in summary["stages"].values())
    assert len(list((finished / "samples").glob("*.png"))) == 2
    assert not list(finished.rglob("*.partial"))


def test_same_seed_same_weights_bit_for_bit(
    finished: Path, mini: Callable[..., DictConfig], tmp_path: Path
) -> None:
    run.train(mini(MODEL), tmp_path / "again")
    assert_same(finished, tmp_path / "again")
    run.train(
        mini(MODEL, "seed=1", "text.overrides=[]", "text.checkpoint=" + _text(finished)),
        tmp_path / "b",
    )
    raw, other = weights(finished), weights(tmp_path / "b")
    assert not torch.equal(raw["unet.conv_in.weight"], other["unet.conv_in.weight"])


def _text(folder: Path) -> str:
    """The text stage that the miniature runs share."""
    config = (folder / "config.yaml").read_text()
    root = next(
        line.split(": ")[1] for line in config.splitlines() if line.startswith("stages_dir")
    )
    return str(next(Path(root).glob("clip-tiny-*/")))


def test_killed_and_resumed_is_uninterrupted(
    finished: Path, mini_root: Path, tmp_path: Path
) -> None:
    """SIGKILL after the first checkpoint, in the middle of what follows; then resume=FOLDER."""
    folder = tmp_path / "killed"
    command = ["train.py", *mini_overrides(MODEL, mini_root), f"hydra.run.dir={folder}"]
    process = subprocess.Popen([sys.executable, "-c", PAUSED, *command], cwd=ROOT)
    deadline = time.monotonic() + 300
    while not (folder / "paused").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / LAST).exists()
    assert not (folder / "summary.json").exists()
    assert checkpoint.read(folder)["salon"]["version"] == 1

    done = door("train.py", f"resume={folder}")
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((folder / "summary.json").read_text())["batches"] == 4
    assert_same(finished, folder)


# train.py, with a pause after the third batch: past the checkpoint at 2, before the end at 4.
PAUSED = """
import sys, time, runpy
from pathlib import Path
from salon.callbacks.cost import Cost
before = Cost.on_train_batch_end
def pause(self, trainer, module, *rest):
    before(self, trainer, module, *rest)
    if module.batches_seen == 3 and type(module).__name__ == "LatentDiffusion":
        Path(trainer.default_root_dir, "paused").touch()
        time.sleep(600)
Cost.on_train_batch_end = pause
sys.argv = sys.argv[1:]
sys.path.insert(0, ".")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_run_that_stopped_in_its_last_validation_validates(
    finished: Path, mini_root: Path, tmp_path: Path
) -> None:
    """The last checkpoint is written before the last validation, whose numbers are the summary."""
    folder = tmp_path / "stopped"
    shutil.copytree(finished, folder)
    (folder / "summary.json").unlink()
    done = door("train.py", f"resume={folder}", "trainer.log_every_n_steps=2")
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = (
        json.loads((f / "summary.json").read_text())["metrics"] for f in (finished, folder)
    )
    assert after["quality/fd_clip"] == pytest.approx(before["quality/fd_clip"], rel=1e-4)
    assert after["val/loss"] == pytest.approx(before["val/loss"], rel=1e-5)


def test_resume_refuses_another_run(
    finished: Path, mini: Callable[..., DictConfig], tmp_path: Path
) -> None:
    done = door("train.py", f"resume={finished}", "seed=3")
    assert done.returncode == 2
    assert "seed=3 would make it another run" in done.stderr
    folder = tmp_path / "auto"
    shutil.copytree(finished, folder)
    with pytest.raises(ValueError, match=r"another model\.steps \(3, and not 5\)"):
        run.train(mini(MODEL, "resume=auto", "model.steps=5"), folder)
    other = 'model.autoencoder.overrides=["model.network.channels=[8]"]'
    with pytest.raises(ValueError, match=r"another model\.autoencoder"):
        run.train(mini(MODEL, "resume=auto", other), folder)


def test_a_folder_of_shards_from_end_to_end(
    mini_root: Path, finished: Path, tmp_path: Path
) -> None:
    """data=shards has no test split and no exact prompts: stages, training and jury go on."""
    shards = next((mini_root / "data").glob("shapes-*")).resolve()
    given = [o for o in mini_overrides("cvae/tiny", mini_root) if not o.startswith("data.")]
    places = [
        "data=shards", f"data.train={shards}/train", f"data.val={shards}/val",
        "data.resolution=16", "data.val_samples=16", "data.workers=0",
    ]  # fmt: skip
    done = door("train.py", *given, *places, f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr[-3000:]
    done = door(
        "-m", "salon.jury", "evaluate", f"checkpoint={tmp_path}/run", "splits=val", "images=16"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "jury" / "val.png").exists()


def wide_and_tall(folder: Path) -> Path:
    """Shards of pictures in three proportions, for training and validation."""
    sides = [(24, 16), (16, 24), (20, 20)]
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        for shard in range(4):
            samples = [
                (
                    f"{shard}{i:03d}",
                    {"png": encode(noise(i, *sides[i % 3])), "txt": b"a red circle"},
                )
                for i in range(36)
            ]
            write_shard(folder / split / f"{shard:05d}.tar", samples)
    return folder


def test_buckets_train_what_can_take_them_and_resume_exactly(
    mini: Callable[..., DictConfig], tmp_path: Path
) -> None:
    shards = wide_and_tall(tmp_path / "shards")
    data = {
        "_target_": "salon.data.module.ShardData", "train": f"{shards}/train",
        "val": f"{shards}/val", "test": None, "heldout": None, "lanes": 4, "window": 36,
        "workers": 0,
    }  # fmt: skip
    buckets = ["data.buckets.step=8", "data.buckets.max_aspect=3.0", "data.resolution=16"]

    def composed(model: str, batches: int) -> DictConfig:
        cfg = mini(model, *buckets, f"budget.batches={batches}", f"stages_dir={tmp_path}/stages")
        OmegaConf.set_struct(cfg, False)
        for key in ("root", "world_seed", "samples", "shard_size", "phrasings", "pairs"):
            del cfg.data[key]
        cfg.data.update(data)
        return cfg

    whole = tmp_path / "whole"
    run.train(composed(MODEL, 6), whole)
    interrupted = tmp_path / "interrupted"
    run.train(composed(MODEL, 2), interrupted)
    cfg = composed(MODEL, 6)
    cfg.resume = str(interrupted)
    run.train(cfg, interrupted)
    assert_same(whole, interrupted)
    with pytest.raises(ValueError, match=r"data\.buckets\.step.*GANIntCLS.*squares only"):
        run.train(composed("gan_int_cls/tiny", 2), tmp_path / "gan")


def test_resume_auto_starts_and_goes_on(mini: Callable[..., DictConfig], tmp_path: Path) -> None:
    auto = ["resume=auto", "objective=val/loss"]
    value = run.train(mini(MODEL, *auto), tmp_path)
    before = (tmp_path / LAST).stat().st_mtime_ns
    assert run.train(mini(MODEL, *auto), tmp_path) == value
    assert (tmp_path / LAST).stat().st_mtime_ns == before, "a finished run is finished"
    run.train(mini(MODEL, *auto, "budget.batches=6"), tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["batches"] == 6


def test_a_checkpoint_needs_no_other_file(
    finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # no stages, no data, no conf here
    model = checkpoint.load(finished)
    image = model.sample(["a red circle above a blue square"], seeds=[0])
    assert image.shape == (1, 3, 16, 16)
    raw = checkpoint.load(finished, ema=False).sample(["a red circle above a blue square"], [0])
    assert not torch.equal(image, raw)


def test_sample_door(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = door(
        "sample.py", f"checkpoint={finished}", "seeds=[0,1]", f"out={out}", "settings.steps=2",
        "prompts=[a red circle above a blue square, a cross]",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    pictures = sorted(p.name for p in out.glob("0*.png"))
    assert len(pictures) == 4
    assert (out / "grid.png").exists()
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == pictures
    with Image.open(out / pictures[1]) as image:
        told = image.text
        assert image.size == (16, 16)
    assert told["prompt"] == "a red circle above a blue square"
    assert told["seed"] == "1"
    assert told["checkpoint_sha256"] == checkpoint.digest(finished)
    assert json.loads(told["settings"])["steps"] == 2
    assert "machine" in told["generated"]


def test_prompts_from_a_file(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n\na blue square\n")
    done = door(
        "sample.py", f"checkpoint={finished}", f"prompts={tmp_path}/prompts.txt",
        f"out={tmp_path}/out", "settings.steps=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((tmp_path / "out").glob("0*.png"))) == 2


def test_jury_door(finished: Path, mini_root: Path) -> None:
    done = door(
        "-m", "salon.jury", "evaluate", f"checkpoint={finished}", "splits=[test,heldout]",
        "images=16", "settings.steps=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((finished / "jury" / "metrics.json").read_text())
    assert set(told["splits"]) == {"test", "heldout"}
    for numbers in told["splits"].values():
        assert numbers["images"] == 16
        assert numbers["prompt_accuracy_real"] >= 0.9
        assert {"fd", "clip_score", "prompt_accuracy", "prompt_accuracy_chance"} <= set(numbers)
    assert told["protocol"]["checkpoint_sha256"] == checkpoint.digest(finished)
    assert (finished / "jury" / "heldout.png").exists()
    assert "prompt_accuracy" in done.stdout


# -- stages ----------------------------------------------------------------------------------------


def test_stages_are_found_again_and_told_apart(
    mini: Callable[..., DictConfig], finished: Path
) -> None:
    trained: list[Path] = []

    def train(cfg: DictConfig, folder: Path) -> None:
        trained.append(folder)
        raise RuntimeError("would be trained")

    cfg = mini(MODEL)
    ready = stages.parts(cfg, identity_of(cfg), train)
    assert set(ready) == {"text", "autoencoder"}
    assert not trained, "the finished run has trained both"
    for change in (
        ["data.world_seed=1"],
        ['model.autoencoder.overrides=["model.beta=1"]'],
        ["seed=5"],
    ):
        changed = mini(MODEL, *change)
        identity = identity_of(changed)
        with pytest.raises(RuntimeError, match="would be trained"):
            stages.parts(changed, identity, train)
    assert len(set(trained)) == 3


def identity_of(cfg: DictConfig) -> str:
    from salon.config import build

    return build(cfg.data, "data").identity


def test_a_stage_given_by_hand_wins(
    mini: Callable[..., DictConfig], finished: Path, tmp_path: Path
) -> None:
    root = Path(mini(MODEL).stages_dir)
    folder = next(root.glob("autoencoder-tiny-*/"))

    def never(cfg: DictConfig, folder: Path) -> None:
        raise AssertionError(folder)

    cfg = mini(
        MODEL, f"model.autoencoder.checkpoint={folder}", f"text.checkpoint={_text(finished)}",
        f"stages_dir={tmp_path}/elsewhere",
    )  # fmt: skip
    assert set(stages.parts(cfg, identity_of(cfg), never)) == {"text", "autoencoder"}


def test_a_stage_that_needs_itself_is_refused(
    mini: Callable[..., DictConfig], tmp_path: Path
) -> None:
    cfg = mini("df_gan/tiny", "text=bilstm", "text._stage_=damsm/tiny", "text.overrides=[]")
    with pytest.raises(ValueError, match="damsm/tiny needs itself trained first"):
        run.train(cfg, tmp_path / "run")


def test_two_jobs_train_a_shared_stage_once(mini_root: Path, tmp_path: Path) -> None:
    """Two processes at once; the second waits at the lock and finds the first one's work."""
    jobs = [
        subprocess.Popen(
            [
                sys.executable, "train.py", *mini_overrides("cvae/tiny", mini_root),
                f"stages_dir={tmp_path}/stages", f"hydra.run.dir={tmp_path}/{i}",
            ],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    told = [job.communicate(timeout=600)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], told
    assert sum("trained now" in text for text in told) == 1
    assert sum(": found in" in text for text in told) == 1


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["model.optimizer.lrr=1"], "nearest known one is 'model.optimizer.lr'"),
        (["budget.batchs=1"], "nearest known one is 'budget.batches'"),
        (["text=clip/vit_b_33"], "nearest known one is text=clip/vit_b_32"),
        (["text=clip/vit_b_32", "text.name=ViT-B-33"], "open_clip has no such model"),
        (["text=clip/vit_b_32", "text.weights=/no/such/file"], "neither a file nor a tag"),
        (["budget.batches=0"], "budget.batches=0"),
        (["trainer.devices=2"], "trainer.devices=2"),
        (["resume=/no/such/run"], "no run folder"),
        (["data=shards", "data.train=/no/such", "data.val=/no/such"], "data.train='/no/such'"),
        (["data=shards", "data.train='pipe:ls'", "data.val=x"], "data.train='pipe:ls'"),
        (["model.sampler=eulr"], "expected one of"),
        (["data.resolution=18"], "does not divide"),
        (["metrics=inception", "metrics.weights=/no/such"], "no such file"),
    ],
)
def test_a_users_mistake_is_a_message(
    finished: Path, mini_root: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    given = mini_overrides(MODEL, mini_root)
    groups = {
        argument.split("=")[0] for argument in arguments if argument.startswith(("data=", "text="))
    }
    for group in groups:
        name = group.split("=")[0]
        given = [o for o in given if not o.startswith(f"{name}.")]
    done = door("train.py", *given, *arguments, f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-2000:]
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unwritable_folder_is_a_message(mini_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for key, says in (
        ("hydra.run.dir", "file"), ("stages_dir", "stages_dir="), ("data.root", "data.root="),
    ):  # fmt: skip
        done = door(
            "train.py", *mini_overrides(MODEL, mini_root), f"hydra.run.dir={tmp_path}/ok",
            f"{key}={tmp_path}/file/below",
        )  # fmt: skip
        assert done.returncode == 2, done.stderr[-2000:]
        assert says in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["checkpoint=/no/such", "prompts=[a]"], "no checkpoint there"),
        (["checkpoint={run}"], "prompts is missing"),
        (["checkpoint={run}", "prompts=[]"], "holds no prompt"),
        (["checkpoint={run}", "prompts=/no/such.txt"], "no such file"),
        (["checkpoint={run}", "prompts=[a]", "seeds=[]"], "seeds=[] draws nothing"),
        (["checkpoint={run}", "prompts=[a]", "settings.temperature=3"], "has no such setting"),
        (
            ["checkpoint={run}", "prompts=[a]", "settings.step=3"],
            "nearest known one is 'settings.steps'",
        ),
        (["checkpoint={stage}", "prompts=[a]"], "a stage that draws no"),
        (["checkpoint=README.md", "prompts=[a]"], "cannot be read as plain weights"),
    ],
)
def test_sampling_mistakes_are_messages(
    finished: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    places = {"run": str(finished), "stage": _text(finished)}
    given = [argument.format(**places) for argument in arguments]
    done = door("sample.py", *given, f"out={tmp_path}")
    assert done.returncode == 2, done.stderr[-2000:]
    assert says in done.stderr


def test_a_hostile_checkpoint_calls_nothing(finished: Path, tmp_path: Path) -> None:
    owned = str(tmp_path / "owned")
    mkdir = {"_target_": "os.mkdir", "path": owned}
    for key, value, says in (
        ("unet", {"_target_": "os.system", "command": f"mkdir {owned}"}, "is not on the list"),
        ("process", {"_target_": "salon.models.clip.equal", "_args_": [mkdir]}, "unknown"),
        (
            "schedule",
            {"_target_": "salon.models.schedules.warmup_cosine", "warmup": mkdir, "final": 1},
            "list",
        ),
        ("optimizer", {"_target_": "salon.run.train", "cfg": {}}, "is not on the list"),
        ("text", {"_target_": "salon.text.tokens.SimpleTokenizer"}, "is not on the list"),
        ("resolution", "${oc.create:{_target_: os.mkdir, path: " + owned + "}}", "arguments"),
    ):
        contents = torch.load(finished / LAST, weights_only=True)
        contents["salon"]["model"][key] = value
        torch.save(contents, tmp_path / "hostile.ckpt")
        with pytest.raises((ValueError, TypeError), match=says):
            checkpoint.load(tmp_path / "hostile.ckpt")
        assert not (tmp_path / "owned").exists()

    class Payload:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"salon": Payload()}, tmp_path / "pickle.ckpt")
    with pytest.raises(ValueError, match="cannot be read as plain weights"):
        checkpoint.load(tmp_path / "pickle.ckpt")
    assert not (tmp_path / "owned").exists()
