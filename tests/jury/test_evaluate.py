"""A model before the jury: the same numbers each time, nothing changed by it, and one report."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from conftest import ROOT
from hearings import asked
from salon import checkpoint, run
from salon.jury import compare, record
from salon.jury.evaluate import evaluate


def test_a_record_holds_what_was_asked_for(heard: Path, trained: Path) -> None:
    told = record.load(heard / "record.json")
    assert (told.label, told.family, told.seed) == ("tiny", "diffusion", 0)
    assert set(told.metrics) == {"test", "heldout", "seen", "phrasings"}
    accuracy = told.metrics["test"]["prompt_accuracy"]
    assert accuracy.n == 16
    assert accuracy.low is not None
    assert accuracy.low <= accuracy.value <= (accuracy.high or 0)
    assert {"fd", "kid", "density", "coverage", "vendi", "clip_score"} <= set(told.metrics["test"])
    assert told.metrics["test"]["prompt_accuracy_real"].value >= 0.9
    assert [dict(one.settings) for one in told.sweep] == [{"steps": 1}, {"steps": 2}]
    one, two = (setting.sample_flops or 0 for setting in told.sweep)
    assert 1.2 * one < two < 2 * one, "a second step of the network, and the decoder once"
    assert len(told.wall) == 3
    assert told.hits is not None
    assert sum(told.hits["heldout"]) / 16 == told.metrics["heldout"]["prompt_accuracy"].value
    assert told.cost is not None
    assert told.cost.images == 32
    assert told.cost.flops is not None
    assert told.cost.flops["stages"] > 0
    assert [point.images_seen for point in told.curve] == [16, 32]
    assert (heard / "phrasings.png").exists()
    assert told.protocol["tower"] == checkpoint.digest_of(checkpoint.load(trained).text)


def test_the_same_again_is_the_same(heard: Path, trained: Path, tmp_path: Path) -> None:
    """Without the features that were kept."""
    evaluate(asked(trained, tmp_path))
    for name in ("metrics.json", "record.json"):
        one, other = (json.loads((folder / name).read_text()) for folder in (heard, tmp_path))
        for sweep in (one.get("sweep", []), other.get("sweep", [])):
            for setting in sweep:
                setting.pop("latency")  # a clock's
        assert one == other


def test_judging_changes_neither_the_checkpoint_nor_chance(
    heard: Path, trained: Path, tmp_path: Path
) -> None:
    before = checkpoint.digest(trained)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    evaluate(asked(trained, tmp_path, "vary=null", "open=[]", "sets=[]"))
    assert torch.equal(torch.rand(3), wanted)
    assert checkpoint.digest(trained) == before


def test_what_needs_no_model_stands_beside_it(heard: Path) -> None:
    told = {one.label: one for one in compare.found_in([str(heard)])}
    assert set(told) == {
        "tiny", "real pictures", "shuffled captions", "nearest caption", "mean image",
    }  # fmt: skip
    for split in ("test", "heldout"):
        numbers = {name: one.metrics[split] for name, one in told.items()}
        accuracy = {name: told["prompt_accuracy"].value for name, told in numbers.items()}
        assert accuracy["real pictures"] >= 0.9
        assert accuracy["shuffled captions"] == accuracy["mean image"] == 0
        assert accuracy["nearest caption"] < 1
        hits = told["real pictures"].hits
        assert hits is not None
        assert sum(hits[split]) / 16 == accuracy["real pictures"]
    # No training picture shows a held-out composition.
    assert numbers["nearest caption"]["prompt_accuracy"].value == 0
    assert told["real pictures"].mark == "ceiling"
    distance = {name: one.metrics["test"]["fd"].value for name, one in told.items()}
    assert distance["real pictures"] < distance["mean image"]


def test_a_second_opinion_and_its_features(trained: Path, mini_root: Path, tmp_path: Path) -> None:
    from conftest import MINI_DATA, MINI_STAGES

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose(
            "train",
            [
                "model=reader/tiny", *MINI_DATA, *MINI_STAGES, f"data.root={mini_root}/data",
                "model.network.channels=8", "model.network.blocks=1", "batch_size=8",
                "budget={batches: 2, validate_every: 2}", "gate=null", "logger=csv",
            ],
        )  # fmt: skip
        run.train(cfg, tmp_path / "reader")
    GlobalHydra.instance().clear()
    less = ["vary=null", "open=[]", "sets=[]", "baselines=false", "splits=[test]"]
    given = [f"reader={tmp_path}/reader", "extractor=shapes", *less]
    told = evaluate(asked(trained, tmp_path / "out", *given))["test"]
    assert told["prompt_accuracy_lenient"].n == 16
    assert told["fd"].value > 0
    protocol = record.load(tmp_path / "out" / "record.json").protocol
    assert str(protocol["extractor"]).startswith("shapes ")
    assert protocol["reader"] == checkpoint.digest_of(checkpoint.load(tmp_path / "reader"))
    with pytest.raises(ValueError, match="none is named; train one"):
        evaluate(asked(trained, tmp_path / "no", "extractor=shapes", *less))
    with pytest.raises(ValueError, match="expected a run of model=reader/tiny"):
        evaluate(asked(trained, tmp_path / "no", f"reader={trained}", *less))


def test_a_report_of_several_runs(heard: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    told = json.loads((heard / "record.json").read_text()) | {"seed": 1}
    (other / "record.json").write_text(json.dumps(told))
    records = compare.found_in([str(heard), str(other)])
    page = compare.write(records, tmp_path / "report", title="Two", command="the command")
    assert "tiny" in page.read_text()
    with (tmp_path / "report" / "leaderboard.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert sum(row["label"] == "tiny" for row in rows) == 2
    told["protocol"]["images"] = 17
    told["seed"] = 2
    (other / "record.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"images.*1[67].*1[67]"):
        compare.write(
            compare.found_in([str(heard), str(other)]), tmp_path / "no", title="", command=""
        )
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("sets=[sean]", "no set of prompts is called 'sean'"),
        ("tower={path}", "expected a run of model=clip"),
        ("checkpoint=nowhere", "checkpoint='nowhere': no checkpoint there"),
    ],
)
def test_mistakes_are_named(trained: Path, tmp_path: Path, change: str, said: str) -> None:
    cfg = asked(trained, tmp_path, change.format(path=trained))
    with pytest.raises(ValueError, match=said):
        evaluate(cfg)


def test_nothing_to_report_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no record\.json.*salon\.jury evaluate"):
        compare.found_in([str(tmp_path)])


def test_what_it_costs_is_in_the_record(trained: Path, tmp_path: Path) -> None:
    few = ["vary=null", "open=[]", "sets=[]", "baselines=false", "splits=[test]"]
    grid = ["energy.intensity=363", "energy.grid=Germany 2024"]
    evaluate(asked(trained, tmp_path, "price={batch: 2, repeats: 1}", *few, *grid))
    cost = record.load(tmp_path / "record.json").cost
    assert cost is not None
    assert cost.flops is not None
    assert cost.parameters is not None
    assert set(cost.flops) == {"unet", "autoencoder", "text", "stages"}
    assert set(cost.parameters) == {"unet"}, "the others are trained as stages"
    assert (cost.sample_parameters or 0) > cost.parameters["unet"]
    assert (cost.energy_wh, cost.sample_wh, cost.sample_co2e_g) == (None, None, None)
    with pytest.raises(ValueError, match="need both"):
        evaluate(asked(trained, tmp_path, *grid[:1]))
    with pytest.raises(ValueError, match=r"energy\.meter='watts'"):
        evaluate(asked(trained, tmp_path, "energy.meter=watts"))
