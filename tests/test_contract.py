"""What every family promises, checked on every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from conftest import MINI_MODELS, ROOT, mini_overrides
from salon import checkpoint, run
from salon.interpolate import End, Row, draw_row
from salon.models.base import TextToImage

CAPTIONS = [
    "a small red circle on the left of a white background",
    "a large blue square above a small green cross",
    "a picture of a big yellow cross",
    "on a gray background, a little cyan triangle in the middle",
    "a purple square",
    "a red circle to the left of a blue circle on a black background",
    "there is a small green triangle at the top",
    "a large cyan cross, a white background",
]
SEEDS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(scope="module", params=sorted(MINI_MODELS))
def trained(
    request: pytest.FixtureRequest, mini_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> TextToImage:
    """A family after a few batches, out of its own checkpoint.

    With weights that are not zero anywhere: layers that start at zero would hide the text.
    """
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", mini_overrides(request.param, mini_root))
        folder = tmp_path_factory.mktemp("contract")
        run.train(cfg, folder)
    model = checkpoint.load(folder)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.averaged.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def test_shape_range_and_type(trained: TextToImage) -> None:
    images = trained.sample(CAPTIONS[:3], SEEDS[:3])
    assert images.shape == (3, 3, trained.resolution, trained.resolution)
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    assert images.min() >= -1
    assert images.max() <= 1
    assert images.std() > 0.01


@pytest.mark.parametrize("size", [1, 3])
def test_an_image_depends_on_its_caption_and_seed_alone(trained: TextToImage, size: int) -> None:
    whole = trained.sample(CAPTIONS, SEEDS)
    pieces = [
        trained.sample(CAPTIONS[i : i + size], SEEDS[i : i + size]) for i in range(0, 8, size)
    ]
    torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-4, rtol=0)
    order = [7, 2, 5, 0, 1, 6, 3, 4]
    shuffled = trained.sample([CAPTIONS[i] for i in order], [SEEDS[i] for i in order])
    torch.testing.assert_close(shuffled, whole[order], atol=1e-4, rtol=0)


def test_other_seeds_and_captions_give_other_images(trained: TextToImage) -> None:
    first, seed, caption = (
        trained.sample([c], [s]) for c, s in ((CAPTIONS[0], 0), (CAPTIONS[0], 1), (CAPTIONS[1], 0))
    )
    assert (first - seed).abs().max() > 1e-3
    assert (first - caption).abs().max() > 1e-3
    torch.testing.assert_close(trained.sample([CAPTIONS[0]], [0]), first, atol=0, rtol=0)


def test_a_row_between_two_captions_ends_at_both(trained: TextToImage) -> None:
    row = Row(End(CAPTIONS[0], 3), End(CAPTIONS[1], 5))
    drawn = draw_row(trained.eval(), row, [0.0, 0.5, 1.0], batch_size=2)
    ends = trained.sample([CAPTIONS[0], CAPTIONS[1]], [3, 5])
    torch.testing.assert_close(drawn[[0, 2]], ends, atol=1e-4, rtol=0)
    assert min((drawn[1] - end).abs().max() for end in ends) > 1e-3


def test_sampling_leaves_no_trace(trained: TextToImage) -> None:
    trained.train()
    state = torch.random.get_rng_state()
    images = trained.sample(CAPTIONS[:2], SEEDS[:2])
    assert trained.training
    assert not images.requires_grad
    assert torch.equal(torch.random.get_rng_state(), state)
    trained.eval()


def test_frozen_parts_stay_frozen(trained: TextToImage) -> None:
    trained.train()
    assert not trained.text.training
    assert not any(p.requires_grad for p in trained.text.parameters())
    assert any(p.requires_grad for p in trained.averaged.parameters())
    trained.eval()


def test_settings_are_part_of_the_model_and_can_be_changed(trained: TextToImage) -> None:
    assert trained.settings
    before = trained.settings
    trained.set_sampling(**before)
    assert trained.settings == before


@pytest.mark.parametrize(
    ("captions", "seeds", "says"),
    [([], [], "no prompt"), (["a red circle"], [0, 1], "one seed for each")],
)
def test_mistakes_are_explained(
    trained: TextToImage, captions: list[str], seeds: list[int], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        trained.sample(captions, seeds)


def test_a_long_prompt_is_cut_with_a_warning_that_says_where(
    trained: TextToImage, caplog: pytest.LogCaptureFixture
) -> None:
    words = "a small red circle " * 20
    trained.sample([words], [0])
    assert "it is cut after" in caplog.text
    assert "longer than the 30" in caplog.text
