"""From a uint8 batch to network input, with an augmentation of its own for every image, on the batch's
device."""

from functools import lru_cache

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import grid_sample

MEAN, STD = 0.45, 0.225  # ImageNet's, averaged over its channels


def to_input(images: UInt8[Tensor, "b h w"]) -> Float[Tensor, "b 1 h w"]:
    """Scale to [0, 1], then standardise."""
    return images[:, None].float().mul_(1 / 255).sub_(MEAN).div_(STD)


def sample_augmentation(
    n: int,
    generator: torch.Generator,
    degrees: float = 7.0,
    shift: float = 0.05,
    zoom: float = 0.10,
    contrast: float = 0.15,
    brightness: float = 0.15,
) -> Float[Tensor, "n 8"]:
    """How each of n images is to be seen: turned, shifted, zoomed and re-exposed, never mirrored, since the heart is on
    the left. A row has an affine map (2, 3) by rows, a gain and an offset.

    generator: on the CPU, so that every device sees the same draws. degrees, shift (share of the side), zoom,
    contrast (of standardised values) and brightness (in standard deviations) are half-widths of uniform
    distributions.
    """
    draws = torch.rand(n, 6, generator=generator) * 2 - 1
    angle = draws[:, 0] * (degrees * torch.pi / 180)
    scale = 1 / (1 + draws[:, 1] * zoom)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    across, down = draws[:, 2] * 2 * shift, draws[:, 3] * 2 * shift
    gain, offset = 1 + contrast * draws[:, 4], brightness * draws[:, 5]
    return torch.stack([cos, -sin, across, sin, cos, down, gain, offset], dim=1)


def apply_augmentation(x: Float[Tensor, "b 1 h w"], views: Float[Tensor, "b 8"]) -> Float[Tensor, "b 1 h w"]:
    """The images as their views have it, on their device. The edge is repeated outwards."""
    grid = sampling_grid(views[:, :6], *x.shape[2:])
    moved = grid_sample(x, grid, padding_mode="border", align_corners=False)
    gain, offset = views[:, 6:, None, None, None].unbind(1)
    return torch.addcmul(offset, moved, gain)


def fold_normalization(views: Float[Tensor, "n 8"]) -> Float[Tensor, "n 8"]:
    """The views that make of pixels, 0 to 255, what the given ones make of standardised values: `to_input` at no pass
    over the images."""
    gain, offset = views[:, 6:7], views[:, 7:]
    return torch.cat([views[:, :6], gain / (255 * STD), offset - gain * (MEAN / STD)], dim=1)


def sampling_grid(maps: Float[Tensor, "b 6"], height: int, width: int) -> Float[Tensor, "b h w 2"]:
    """torch's `affine_grid` (align_corners=False), as one product of two matrices instead of one for
    each image: an eighth of the time on two cores."""
    points = _points(height, width, maps.device)
    return (maps.reshape(-1, 3) @ points).view(-1, 2, height, width).permute(0, 2, 3, 1)


@lru_cache(maxsize=8)
def _points(height: int, width: int, device: torch.device) -> Float[Tensor, "3 hw"]:
    """(x, y, 1) of each pixel's centre in [-1, 1]."""
    x, y = (torch.linspace(-1, 1, n, device=device) * ((n - 1) / n) for n in (width, height))
    rows = [x.expand(height, width), y[:, None].expand(height, width), torch.ones(height, width, device=device)]
    return torch.stack(rows).flatten(1)
