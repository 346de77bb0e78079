"""From a uint8 batch to network input, with an augmentation of its own for every image, on the batch's
device."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

MEAN, STD = 0.45, 0.225  # ImageNet's, averaged over its channels


def to_input(images: UInt8[Tensor, "b h w"]) -> Float[Tensor, "b 1 h w"]:
    """Scale to [0, 1], then standardise."""
    return (images[:, None].float() * (1 / 255) - MEAN) / STD


def augment(
    x: Float[Tensor, "b 1 h w"],
    generator: torch.Generator,
    degrees: float = 7.0,
    shift: float = 0.05,
    zoom: float = 0.10,
    contrast: float = 0.15,
    brightness: float = 0.15,
) -> Float[Tensor, "b 1 h w"]:
    """Rotate, shift, zoom and re-expose each image with parameters of its own; never mirrored: the heart is
    on the left.

    generator: on the CPU, so that every device sees the same draws. degrees, shift (share of the side), zoom,
    contrast (of standardised values) and brightness (in standard deviations) are half-widths of uniform
    distributions. The edge is repeated outwards.
    """
    draws = torch.rand(len(x), 6, generator=generator) * 2 - 1
    angle = draws[:, 0] * (degrees * torch.pi / 180)
    scale = 1 / (1 + draws[:, 1] * zoom)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack([cos, -sin, draws[:, 2] * 2 * shift, sin, cos, draws[:, 3] * 2 * shift], dim=1)
    theta = theta.view(-1, 2, 3).to(x.device, non_blocking=True)
    exposure = draws[:, 4:].to(x.device, non_blocking=True)
    grid = affine_grid(theta, list(x.shape), align_corners=False)
    moved = grid_sample(x, grid, padding_mode="border", align_corners=False)
    gain = (1 + contrast * exposure[:, 0])[:, None, None, None]
    return moved * gain + (brightness * exposure[:, 1])[:, None, None, None]
