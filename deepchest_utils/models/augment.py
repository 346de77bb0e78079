"""From uint8 images to network input: standardised and, in training, each image augmented in its own way."""

import math
from functools import lru_cache

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import grid_sample

MEAN, STD = 0.45, 0.225  # ImageNet's, averaged over its channels


def to_input(
    images: UInt8[Tensor, "b h w"] | Float[Tensor, "b f"],
    augmentation: Float[Tensor, "b 8"] | None = None,
    padding: str = "border",
) -> Float[Tensor, "b *input"]:
    """Scale pixels to [0, 1], standardise, and augment if there are parameters of a function of SAMPLERS. Features of images
    stay as they are, in float32."""
    if images.ndim == 2:
        return images.float()
    pixels = images[:, None].float()
    if augmentation is None:
        return pixels.mul_(1 / 255).sub_(MEAN).div_(STD)
    return apply_augmentation(pixels, fold_normalization(augmentation), padding)


def sample_augmentation(
    n: int,
    generator: torch.Generator,
    degrees: float = 7.0,
    shift: float = 0.05,
    zoom: float = 0.10,
    contrast: float = 0.15,
    brightness: float = 0.15,
) -> Float[Tensor, "n 8"]:
    """Draw a rotation, shift, zoom and exposure for each of n images. Never a mirror image: the heart is on the left.

    Args:
        n: Number of images.
        generator: On the CPU, so that every device gets the same draws.
        degrees, shift, zoom, contrast, brightness: Half-widths of uniform distributions. shift is a share of the
            image's side, contrast a factor of standardised values, brightness in standard deviations.
    Returns a row an image: an affine map (2, 3) by rows, as in torch's `affine_grid`, then a gain and an offset.
    """
    draws = torch.rand(n, 6, generator=generator) * 2 - 1
    angle = draws[:, 0] * (degrees * torch.pi / 180)
    scale = 1 / (1 + draws[:, 1] * zoom)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    dx, dy = draws[:, 2] * 2 * shift, draws[:, 3] * 2 * shift
    gain, offset = 1 + contrast * draws[:, 4], brightness * draws[:, 5]
    return torch.stack([cos, -sin, dx, sin, cos, dy, gain, offset], dim=1)


def sample_resized_crop(n: int, generator: torch.Generator) -> Float[Tensor, "n 8"]:
    """Draw the published recipe's augmentation for each of n square images; it applies it to training and test images.

    First a rotation by up to 30 degrees (black comes in at the corners). Then a crop of 8 to 100% of the area, with
    sides in a ratio of 3/4 to 4/3, stretched to the whole. Half of the images, drawn at random, are mirrored.

    The crop is drawn as torchvision's `RandomResizedCrop` draws it, but not rounded to pixels. Both are one affine map, and
    the image is resampled once. The generator and the rows are those of `sample_augmentation`.
    """
    draws = torch.rand(n, 24, generator=generator)
    angle, flip = (draws[:, 0] * 2 - 1) * (torch.pi / 6), torch.where(draws[:, 1] < 0.5, -1.0, 1.0)
    area, ratio = 0.08 + 0.92 * draws[:, 2:12], ((draws[:, 12:22] * 2 - 1) * math.log(4 / 3)).exp()
    sides = torch.stack([area * ratio, area / ratio], dim=-1).sqrt()  # ten tries: width and height
    fits = (sides <= 1).all(-1)
    first = sides[torch.arange(n), fits.int().argmax(1)]
    width, height = first.where(fits.any(1, keepdim=True), 1.0).unbind(1)  # the whole image where no try fits
    x, y = (2 * draws[:, 22] - 1) * (1 - width), (2 * draws[:, 23] - 1) * (1 - height)
    cos, sin, across = angle.cos(), angle.sin(), width * flip
    rows = [cos * across, -sin * height, cos * x - sin * y, sin * across, cos * height, sin * x + cos * y]
    return torch.stack([*rows, torch.ones(n), torch.zeros(n)], dim=1)


SAMPLERS = {"small": sample_augmentation, "resized_crop": sample_resized_crop}
PADDING = {"small": "border", "resized_crop": "zeros"}  # what lies outside of an image: its border again, or black


def apply_augmentation(
    x: Float[Tensor, "b 1 h w"], augmentation: Float[Tensor, "b 8"], padding: str = "border"
) -> Float[Tensor, "b 1 h w"]:
    """Resample each image by its affine map, multiply by its gain and add its offset."""
    grid = sampling_grid(augmentation[:, :6], *x.shape[2:])
    resampled = grid_sample(x, grid, padding_mode=padding, align_corners=False)
    gain, offset = augmentation[:, 6:, None, None, None].unbind(1)
    return torch.addcmul(offset, resampled, gain)


def fold_normalization(augmentation: Float[Tensor, "n 8"]) -> Float[Tensor, "n 8"]:
    """Parameters that do to pixels (0 to 255) what the given ones do to standardised values, which saves a pass."""
    gain, offset = augmentation[:, 6:7], augmentation[:, 7:]
    return torch.cat([augmentation[:, :6], gain / (255 * STD), offset - gain * (MEAN / STD)], dim=1)


def sampling_grid(maps: Float[Tensor, "b 6"], height: int, width: int) -> Float[Tensor, "b h w 2"]:
    """torch's `affine_grid` (align_corners=False) as one matrix product: 8 times as fast on 2 cores."""
    points = _pixel_centres(height, width, maps.device)
    return (maps.reshape(-1, 3) @ points).view(-1, 2, height, width).permute(0, 2, 3, 1)


@lru_cache(maxsize=8)
def _pixel_centres(height: int, width: int, device: torch.device) -> Float[Tensor, "3 hw"]:
    """(x, y, 1) of each pixel's centre, in [-1, 1]."""
    x, y = (torch.linspace(-1, 1, n, device=device) * ((n - 1) / n) for n in (width, height))
    rows = [x.expand(height, width), y[:, None].expand(height, width), torch.ones(height, width, device=device)]
    return torch.stack(rows).flatten(1)
