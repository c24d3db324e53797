"""Several checkpoints, one sheet: a row for each, the same prompts and seeds in every row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from conftest import ROOT, mini_overrides
from salon import checkpoint, draw, pictures, run

PROMPTS = ["a red circle", "a blue square"]
FAMILIES = ("cvae/tiny", "df_gan/tiny")
LEFT = 6 + 128 + 6  # of the first picture: the rows' names stand before it


@pytest.fixture(scope="module")
def folders(mini_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    GlobalHydra.instance().clear()
    made = []
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for name in FAMILIES:
            made.append(tmp_path_factory.mktemp(name.split("/")[0]))
            run.train(compose("train", mini_overrides(name, mini_root)), made[-1])
    return made


def test_every_row_is_what_its_model_draws(
    hydra_conf: None, folders: list[Path], tmp_path: Path
) -> None:
    listed = ", ".join(map(str, folders))
    given = [f"checkpoint=[{listed}]", f"prompts=[{', '.join(PROMPTS)}]", "seeds=[3,4]"]
    out = draw.draw(compose("sample", [*given, f"out={tmp_path}/out", "device=cpu"]))
    assert sorted(file.name for file in out.iterdir()) == ["comparison.png", "samples.jsonl"]
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [(line["row"], line["column"]) for line in lines] == [
        (row, column) for row in range(2) for column in range(4)
    ]
    assert [line["model"] for line in lines[::4]] == ["CVAE", "DFGAN"]
    assert [(line["prompt"], line["seed"]) for line in lines[4:]] == [
        (prompt, seed) for prompt in PROMPTS for seed in (3, 4)
    ]
    with Image.open(out / "comparison.png") as sheet:
        told = json.loads(sheet.text["models"])  # type: ignore[attr-defined]
        assert [made["checkpoint_sha256"] for made in told] == [
            lines[row * 4]["checkpoint_sha256"] for row in range(2)
        ]
        assert sheet.width == LEFT + 4 * 134
        bottom = sheet.height - 6
        for row, folder in enumerate(folders):
            model = checkpoint.load(folder)
            drawn = model.sample([PROMPTS[1]], [4])
            expected = pictures.to_pil(drawn)[0].resize((128, 128), Image.Resampling.NEAREST)
            x, y = LEFT + 3 * 134, bottom - (2 - row) * 134 + 6
            assert sheet.crop((x, y, x + 128, y + 128)).tobytes() == expected.tobytes()


def test_images_of_other_sizes_are_shown_as_large() -> None:
    small, large = torch.zeros(2, 3, 16, 16), torch.ones(2, 3, 32, 32)
    sheet = pictures.table([("first", small), ("second", large)], ["", ""])
    assert sheet.getpixel((LEFT + 127, 6 + 6 + 127)) == (128, 128, 128)
    assert sheet.getpixel((LEFT + 128, 6 + 6 + 127)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("checkpoint=[]", r"checkpoint=\[\] draws nothing"),
        ("checkpoint=[FOLDER, FOLDER]", "interpolate=4 goes through one model"),
        ("checkpoint=[FOLDER, /no/such]", "no checkpoint there"),
    ],
)
def test_mistakes(
    hydra_conf: None, folders: list[Path], tmp_path: Path, given: str, says: str
) -> None:
    given = given.replace("FOLDER", str(folders[0]))
    walk = ["interpolate=4"] if "interpolate" in says else []
    prompts = f"prompts=[{', '.join(PROMPTS)}]"
    with pytest.raises(ValueError, match=says):
        draw.draw(compose("sample", [given, prompts, f"out={tmp_path}/out", *walk]))
    assert not (tmp_path / "out").exists()
