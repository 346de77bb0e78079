"""Augmentation: parameters of its own for every image, from the generator alone, and nothing at all when all
half-widths are 0."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import affine_grid

from deepchest_utils.models.augment import (
    MEAN,
    STD,
    apply_augmentation,
    fold_normalization,
    sample_augmentation,
    sampling_grid,
    to_input,
)

STILL = {"degrees": 0.0, "shift": 0.0, "zoom": 0.0, "contrast": 0.0, "brightness": 0.0}


def augment(x, rng, **widths):
    return apply_augmentation(x, sample_augmentation(len(x), rng, **widths))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def blob():
    """One image, eight times: a bright square off the centre."""
    x = torch.zeros(8, 1, 32, 32)
    x[:, :, 8:16, 16:26] = 1
    return x


def centroid(x):
    """Of each image, (across, down) in px."""
    line = torch.arange(x.shape[-1], dtype=x.dtype)
    mass = x.sum((1, 2, 3))
    return torch.stack([(x.sum((1, 2)) * line).sum(-1), (x.sum((1, 3)) * line).sum(-1)], dim=1) / mass[:, None]


def test_to_input_standardises():
    x = to_input(torch.tensor([[[0, 255], [51, 102]]], dtype=torch.uint8))
    assert x.shape == (1, 1, 2, 2)
    torch.testing.assert_close(x[0, 0] * STD + MEAN, torch.tensor([[0, 1], [0.2, 0.4]]))


@pytest.mark.parametrize(("batch", "height", "width"), [(64, 64, 64), (5, 17, 33), (1, 2, 2), (3, 224, 224)])
def test_grid_is_torchs(batch, height, width):
    maps = torch.randn(batch, 6, generator=generator())
    expected = affine_grid(maps.view(-1, 2, 3), [batch, 1, height, width], align_corners=False)
    torch.testing.assert_close(sampling_grid(maps, height, width), expected, rtol=1e-6, atol=1e-6)


def test_folded_normalisation_augments_and_standardises_at_once():
    pixels = torch.randint(0, 256, (9, 20, 30), dtype=torch.uint8, generator=generator())
    augmentation = sample_augmentation(9, generator(1))
    in_turn = apply_augmentation(to_input(pixels), augmentation)
    at_once = apply_augmentation(pixels[:, None].float(), fold_normalization(augmentation))
    torch.testing.assert_close(at_once, in_turn, rtol=1e-5, atol=1e-5)
    assert torch.equal(to_input(pixels, augmentation), at_once)


def test_parameters_drawn_at_once_are_those_drawn_batch_by_batch():
    rng = generator(3)
    in_turn = torch.cat([sample_augmentation(16, rng) for _ in range(5)])
    assert torch.equal(sample_augmentation(80, generator(3)), in_turn)


def test_identity():
    x = torch.randn(5, 1, 30, 30, generator=generator(1))
    torch.testing.assert_close(augment(x, generator(), **STILL), x, atol=1e-5, rtol=0)


@given(st.integers(1, 9), st.sampled_from([2, 17, 64]), st.integers(0, 1000), st.floats(0, 180), st.floats(0, 0.9))
def test_shape_kept_and_all_finite(batch, size, seed, degrees, width):
    x = torch.randn(batch, 1, size, size, generator=generator(seed))
    y = augment(x, generator(seed), degrees=degrees, shift=width, zoom=width, contrast=width, brightness=width)
    assert y.shape == x.shape
    assert torch.isfinite(y).all()
    # interpolation stays between the values; contrast and brightness widen the range by their half-widths
    assert y.abs().max() <= x.abs().max() * (1 + width) + width + 1e-4


def test_the_generator_decides():
    x = torch.randn(4, 1, 32, 32, generator=generator(1))
    before = x.clone()
    first, again, other = augment(x, generator(0)), augment(x, generator(0)), augment(x, generator(1))
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).all(dim=(1, 2, 3)).any()
    assert torch.equal(x, before)  # in place, the next epoch would start from there
    draws = generator(0)
    assert not torch.equal(augment(x, draws), augment(x, draws))
    torch.manual_seed(5)
    torch.rand(3)
    assert torch.equal(augment(x, generator(0)), first)  # whatever the global state is


@pytest.mark.parametrize("name", STILL)
def test_each_image_has_its_own(blob, name):
    """One kind of change at a time, on equal images: no two come out equal."""
    y = augment(blob, generator(), **STILL | {name: 0.3 if name != "degrees" else 20.0})
    apart = [(a - b).abs().max() for i, a in enumerate(y) for b in y[:i]]
    assert min(apart) > 1e-4


def test_shift_moves_by_its_share_of_the_side(blob):
    y = augment(blob, generator(), **STILL | {"shift": 0.1})
    moved = centroid(y) - centroid(blob)
    assert moved.abs().max() <= 0.1 * 32 + 0.01
    assert moved.abs().max() > 0.05 * 32
    assert (moved[:, 0] * moved[:, 1]).min() < 0 < (moved[:, 0] * moved[:, 1]).max()  # independent directions


def test_zoom_scales_by_its_share():
    x = torch.zeros(200, 1, 64, 64)
    x[:, :, 22:42, 22:42] = 1
    area = augment(x, generator(), **STILL | {"zoom": 0.2}).sum((1, 2, 3)) / 400
    assert 0.8**2 - 0.02 < area.min() < 0.8**2 + 0.05
    assert 1.2**2 - 0.05 < area.max() < 1.2**2 + 0.02


def test_rotation_turns_by_its_degrees(blob):
    y = augment(blob.repeat(25, 1, 1, 1), generator(), **STILL | {"degrees": 30.0})
    before, after = (centroid(x) - 15.5 for x in (blob[:1], y))
    torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1).expand(200), atol=0.2, rtol=0)
    turned = torch.rad2deg(torch.atan2(after[:, 1], after[:, 0]) - torch.atan2(before[:, 1], before[:, 0]))
    assert -30.5 < turned.min() < -27
    assert 27 < turned.max() < 30.5


def test_exposure_is_a_line(blob):
    """Contrast multiplies and brightness adds, each image by its own amount, within the half-widths."""
    y = augment(blob.repeat(50, 1, 1, 1), generator(), **STILL | {"contrast": 0.2, "brightness": 0.3}).flatten(1)
    dark, bright = y.min(1).values, y.max(1).values
    gain = (bright - dark).numpy()
    assert 0.8 - 1e-5 <= gain.min() < 0.82
    assert 1.18 < gain.max() <= 1.2 + 1e-5
    assert -0.3 <= dark.min() < -0.28
    assert 0.28 < dark.max() <= 0.3
    assert abs(np.corrcoef(gain, dark.numpy())[0, 1]) < 0.2  # 400 images: 4 standard errors


def test_never_mirrored():
    """The heart stays on its side, in every one of many draws."""
    x = torch.zeros(500, 1, 32, 32)
    x[:, :, 12:20, 20:28] = 1
    y = augment(x, generator(), **STILL | {"degrees": 7.0, "shift": 0.05, "zoom": 0.10})
    assert (centroid(y)[:, 0] > 18).all()
