import pytest
import torch

from salon.metrics.images import to_uint8


def image(*values: float) -> torch.Tensor:
    return torch.tensor(values).expand(1, 3, 2, len(values))


def test_range_is_clamped() -> None:
    pixels = to_uint8(image(-1.0, 1.0, 1.3, -1.01, float("inf"), 1.004))
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (1, 3, 2, 6)
    assert pixels[0, 0, 0].tolist() == [0, 255, 255, 0, 255, 255]


def test_levels_are_rounded() -> None:
    assert to_uint8(image(*(level / 127.5 - 1 for level in (99.6, 100.4))))[0, 0, 0].tolist() == [
        100,
        100,
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_levels_come_back(dtype: torch.dtype) -> None:
    levels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    assert torch.equal(to_uint8(levels.to(dtype) / 127.5 - 1), levels)
    assert torch.equal(to_uint8((levels.to(dtype) / 255 - 0.5) / 0.5), levels)


def test_the_images_given_stay_as_they_are() -> None:
    given = torch.tensor([[[[2.0]]]]).repeat(1, 3, 1, 1)
    to_uint8(given)
    assert given.eq(2).all()


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(image(0.0, float("nan")))


def test_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        to_uint8(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
