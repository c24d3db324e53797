"""From one prompt to another and from one noise to another: the way, its ends, and its picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

import toy
from conftest import ROOT, mini_overrides
from salon import checkpoint, draw, interpolate, run
from salon.interpolate import End, Row, slerp
from salon.models.base import TextToImage
from salon.nn.attention import MultiHeadAttention
from salon.text.base import blend
from salon.types import Text

SHORT, LONG = "a red circle", "a large blue square above a small green cross"
FAMILIES = ("latent_diffusion/tiny", "cvae/tiny")  # one hears tokens, one the pooled vector


@pytest.fixture(scope="module", params=FAMILIES)
def folder(
    request: pytest.FixtureRequest, mini_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of a few batches, whose text reaches its pictures."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", mini_overrides(request.param, mini_root))
        made = tmp_path_factory.mktemp("walked")
        run.train(cfg, made)
    contents = checkpoint.read(made)
    generator = torch.Generator().manual_seed(0)
    for value in contents["ema"]["average"].values():
        value += 0.1 * torch.randn(value.shape, generator=generator)  # past layers of zeros
    torch.save(contents, made / checkpoint.LAST)
    return made


@pytest.fixture
def sampling(hydra_conf: None, folder: Path, tmp_path: Path) -> list[str]:
    return [f"checkpoint={folder}", f"out={tmp_path}/out", "device=cpu"]


# -- noise -----------------------------------------------------------------------------------------


def test_halfway_between_orthogonal_ones() -> None:
    a, b = torch.tensor([[3.0, 0, 0, 0]]), torch.tensor([[0, 0, 3.0, 0]])
    half = slerp(a, b, torch.tensor([0.5]))
    torch.testing.assert_close(half, (a + b) / 2**0.5)
    third = slerp(a, b, torch.tensor([1 / 3]))  # 30 degrees
    torch.testing.assert_close(third, torch.tensor([[3 * 0.75**0.5, 0, 1.5, 0]]))


def test_the_arc_keeps_the_length_and_its_steps_are_equal() -> None:
    a, b = torch.nn.functional.normalize(normal(2, 48), dim=1).view(2, 1, 3, 4, 4)
    way = slerp(a, b, torch.linspace(0, 1, 6))
    assert way.shape == (6, 3, 4, 4)
    flat = way.flatten(1)
    torch.testing.assert_close(flat.norm(dim=1), torch.ones(6))
    cosines = (flat[1:] * flat[:-1]).sum(1)
    angle = torch.acos((a * b).sum())
    torch.testing.assert_close(cosines.acos(), (angle / 5).expand(5), rtol=1e-4, atol=0)


def test_the_arc_ends_exactly_where_it_should() -> None:
    a, b = normal(2, 7).split(1)
    way = slerp(a, b, torch.tensor([0.0, 1.0]))
    assert torch.equal(way, torch.cat([a, b]))


def test_from_a_noise_to_itself_nothing_moves() -> None:
    a = normal(1, 7)
    assert torch.equal(slerp(a, a, torch.linspace(0, 1, 5)), a.expand(5, 7))


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


# -- captions --------------------------------------------------------------------------------------


def caption(length: int, *, padding: int = 0, seed: int = 0) -> Text:
    """A text of one caption with NaN in its padding, which nothing may read."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, length + padding, 4, generator=generator)
    tokens[:, length:] = torch.nan
    mask = torch.arange(length + padding)[None] < length
    return Text(tokens, mask, torch.randn(1, 5, generator=generator))


def test_captions_of_one_length_go_straight() -> None:
    a, b = caption(3), caption(3, padding=2, seed=1)
    half = blend(a, b, torch.tensor([0.0, 0.25, 1.0]))
    assert half.mask.all()
    assert torch.equal(half.tokens[0], a.tokens[0])
    assert torch.equal(half.tokens[2], b.tokens[0, :3])
    torch.testing.assert_close(half.tokens[1], 0.75 * a.tokens[0] + 0.25 * b.tokens[0, :3])
    assert torch.equal(half.pooled[0], a.pooled[0])
    assert torch.equal(half.pooled[2], b.pooled[0])
    torch.testing.assert_close(half.pooled[1], 0.75 * a.pooled[0] + 0.25 * b.pooled[0])


def test_a_token_meets_the_one_at_the_same_place_of_a_longer_caption() -> None:
    a, b = caption(2, padding=1), caption(3, seed=1)
    half = blend(a, b, torch.tensor([0.5]))
    one, other = a.tokens[0, [0, 0, 0, 1, 1, 1]], b.tokens[0, [0, 0, 1, 1, 2, 2]]
    torch.testing.assert_close(half.tokens[0], (one + other) / 2)
    assert half.mask.shape == (1, 6)


def test_attention_sees_the_captions_at_the_ends_and_no_jump_beside_them() -> None:
    """With tokens that fade in from zero, the first share above 0 is a jump."""
    torch.manual_seed(0)
    attention = MultiHeadAttention(8, context_dim=4, heads=2, bias=False)
    pixels = normal(1, 5, 8)

    def seen(text: Text) -> Tensor:
        tokens = text.tokens.masked_fill(~text.mask[:, :, None], 0)
        return attention(pixels.expand(len(tokens), -1, -1), tokens, text.mask)

    a, b = caption(3, padding=1), caption(7, seed=1)
    with torch.no_grad():
        way = seen(blend(a, b, torch.tensor([0.0, 1e-4, 0.5, 1 - 1e-4, 1.0])))
        first, last = seen(a)[0], seen(b)[0]
    torch.testing.assert_close(way[0], first, rtol=0, atol=1e-6)
    torch.testing.assert_close(way[4], last, rtol=0, atol=1e-6)
    step = (first - last).abs().max()
    assert (way[1] - first).abs().max() < 1e-3 * step
    assert (way[3] - last).abs().max() < 1e-3 * step
    assert (way[2] - first).abs().max() > 0.1 * step


# -- rows ------------------------------------------------------------------------------------------


def test_neighbours_are_joined() -> None:
    made = interpolate.rows(["a", "b", "c"], [7, 8, 9])
    assert made == [
        Row(End("a", 7), End("b", 7)),
        Row(End("b", 7), End("c", 7)),
        Row(End("a", 7), End("a", 8)),
        Row(End("a", 8), End("a", 9)),
    ]
    assert len(interpolate.rows(["a", "b"], [7])) == 1
    assert len(interpolate.rows(["a"], [7, 8])) == 1


def test_places_along_a_row() -> None:
    assert interpolate.shares(2) == [0, 1]
    assert interpolate.shares(5) == [0, 0.25, 0.5, 0.75, 1]


def test_nowhere_to_go() -> None:
    with pytest.raises(ValueError, match=r"prompts=\['a'\] seeds=\[7\].*Give two.*seeds=\[0,1\]"):
        interpolate.rows(["a"], [7])


@pytest.mark.parametrize("number", [1, 0, -3, 2.5, "many"])
def test_a_row_has_two_ends(number: object) -> None:
    with pytest.raises(ValueError, match=rf"interpolate={number}.*at least 2"):
        interpolate.shares(number)  # type: ignore[arg-type]


def test_each_picture_is_painted_from_its_own_noise_and_text() -> None:
    """On a toy that paints noise alone: the row is its painting of the arc, in pieces or whole."""
    model = toy.Toy().eval()
    row, places = Row(End(SHORT, 3), End(SHORT, 4)), interpolate.shares(5)
    drawn = interpolate.draw_row(model, row, places, batch_size=2)
    ends = [torch.randn(192, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4)]
    z = slerp(ends[0][None], ends[1][None], torch.tensor(places))
    with torch.no_grad():
        expected = model.painter(z).view(-1, 3, 8, 8).clamp(-1, 1)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-6)
    assert not drawn.requires_grad


@pytest.mark.parametrize(
    "row", [Row(End(SHORT, 3), End(LONG, 3)), Row(End(LONG, 3), End(LONG, 4))], ids=["text", "z"]
)
def test_a_row_goes_from_a_sample_to_a_sample(folder: Path, row: Row) -> None:
    model: TextToImage = checkpoint.load(folder)
    drawn = interpolate.draw_row(model, row, interpolate.shares(5), batch_size=3)
    assert drawn.shape == (5, 3, 16, 16)
    ends = model.sample([end.prompt for end in row], [end.seed for end in row])
    torch.testing.assert_close(drawn[[0, -1]], ends, rtol=0, atol=1e-4)
    whole = (ends[0] - ends[1]).abs().max()
    steps = (drawn[1:] - drawn[:-1]).abs().amax((1, 2, 3))
    assert (steps > 0.01 * whole).all(), "every picture moves on"


def test_no_picture_jumps_beside_an_end(folder: Path) -> None:
    model = checkpoint.load(folder)
    row = Row(End(SHORT, 3), End(LONG, 3))
    drawn = interpolate.draw_row(model, row, [0.0, 1e-3, 1.0], batch_size=3)
    near, far = ((drawn[i] - drawn[0]).abs().max() for i in (1, 2))
    assert near < 0.05 * far


# -- the door --------------------------------------------------------------------------------------


def sample_config(*overrides: str) -> DictConfig:
    return compose("sample", list(overrides))


def test_the_figure_and_its_lines(sampling: list[str], tmp_path: Path) -> None:
    given = [f"prompts=[{SHORT}, {LONG}]", "seeds=[0,1]", "interpolate=4", "batch_size=3"]
    out = draw.draw(sample_config(*sampling, *given))
    assert sorted(file.name for file in out.iterdir()) == ["interpolation.png", "samples.jsonl"]
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert {line["file"] for line in lines} == {"interpolation.png"}
    assert [line["share"] for line in lines[:4]] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert [(line["prompts"], line["seeds"]) for line in lines[::4]] == [
        ([SHORT, LONG], [0, 0]),
        ([SHORT, SHORT], [0, 1]),
    ]
    assert len(lines[0]["checkpoint_sha256"]) == 64
    with Image.open(out / "interpolation.png") as image:
        wide, high = image.size
        assert json.loads(image.text["rows"])[1] == [[SHORT, 0], [SHORT, 1]]  # type: ignore[attr-defined]
        assert "machine" in image.text["generated"]  # type: ignore[attr-defined]
        ink = [cell_has_words(image, column) for column in range(4)]
    assert wide / high > 1.5, "two rows of four"
    assert ink == [True, False, False, True], "captions stand under the ends"


def cell_has_words(image: Image.Image, column: int) -> bool:
    """Whether anything is written under the picture of the first row in that column."""
    left = 6 + column * (128 + 6)
    below = image.crop((left, 6 + 128, left + 128, 6 + 128 + 20)).convert("L")
    return below.getextrema()[0] < 128


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["prompts=[a red circle]", "interpolate=8"], "Give two"),
        (["prompts=[a red circle]", "seeds=[0,1]", "interpolate=1"], "interpolate=1; expected"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(
    hydra_conf: None, tmp_path: Path, given: list[str], says: str
) -> None:
    cfg = sample_config("checkpoint=/no/such", f"out={tmp_path}/out", *given)
    with pytest.raises(ValueError, match=says):
        draw.draw(cfg)
    assert not (tmp_path / "out").exists()
