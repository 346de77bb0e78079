"""The 14 findings, each as its radiographic sign in its place: attenuation added to the normal chest, and the mask.

A sign takes the scene, its strength on [0, 1], x mirrored to be positive on its side (`sx`), and up to seven numbers,
uniform on [0, 1], for place and size. The strength is drawn once an image, the side and the numbers once a patient.
Some findings also change the anatomy before it is drawn (`change_anatomy`): heart and diaphragm.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deepchest_utils.datasets.findings import FINDINGS
from deepchest_utils.datasets.phantom.anatomy import Field, Param, Scene, ellipse, soft, texture

Drawn = tuple[Field, Bool[Tensor, "b h w"]]  # attenuation and mask


def change_anatomy(
    present: Float[Tensor, "b k"], u: Float[Tensor, "b k 8"], strength: Float[Tensor, "b k"]
) -> dict[str, Param]:
    """The findings' changes of the anatomy's parameters; `present` is 0 where one is absent, else its visibility."""

    def amount(name: str, low: float, high: float) -> Float[Tensor, " b"]:
        k = FINDINGS.index(name)
        return present[:, k] * (low + (high - low) * strength[:, k])

    left = u[:, FINDINGS.index("Atelectasis"), 0] > 0.5
    collapse, scar = amount("Atelectasis", 0.015, 0.07), amount("Fibrosis", 0.01, 0.04)
    changes = {"volume_loss_left": collapse * left + scar, "volume_loss_right": collapse * ~left + scar}
    changes["cardiomegaly"] = amount("Cardiomegaly", 0.12, 0.40)
    changes["hyperinflation"] = amount("Emphysema", 0.15, 0.85)
    return {name: value.float()[:, None, None] for name, value in changes.items()}


def _air_bronchograms(s: Scene, sx: Field, patch: Field) -> Field:
    """Dark branching lines where air is left in filled lung."""
    angle, radius = torch.atan2(s.y + 0.05, sx - 0.12), torch.hypot(sx - 0.12, s.y + 0.05)
    return -0.25 * patch * torch.exp(-((texture(s.noise, angle / torch.pi, radius / 2) / 0.12) ** 2))


def atelectasis(s: Scene, strength: Param, sx: Tensor, a: Param, b: Param, c: Param, d: Param, *_: Tensor) -> Drawn:
    """Plate-like band in the lower zone, with the hemidiaphragm drawn up (`change_anatomy`)."""
    y0, tilt = s.p["dome"] - 0.10 - 0.14 * a, 0.30 * (b - 0.5)
    along, across = sx - 0.40 - 0.10 * (c - 0.5), s.y - y0 - tilt * (sx - 0.4)
    band = torch.minimum(0.018 + 0.016 * d - across.abs(), 0.19 + 0.08 * a - along.abs())
    mask = (band > 0) & (s.dome_distance > 0) & (s.side_distance > 0)
    return (0.07 + 0.17 * strength) * soft(band, 0.010) * s.lung, mask


def cardiomegaly(s: Scene, strength: Param, *_: Tensor) -> Drawn:
    """The heart is wide, in most films wider than half the chest (`change_anatomy`); the mask is the heart."""
    return torch.zeros_like(s.x), s.heart > 0.5


def effusion(s: Scene, strength: Param, sx: Tensor, a: Param, *_: Tensor) -> Drawn:
    """Fluid blunts the costophrenic angle: dense, its upper edge a meniscus rising to the chest wall."""
    level = s.p["dome"] + s.p["inspiration"] + 0.13 - 0.30 * strength * (0.3 + 0.7 * a)
    depth = s.y - level + 0.16 * torch.exp(-s.side_distance.clamp(min=0.0) / 0.09)
    mask = (depth > 0) & (sx > 0.05) & (s.side_distance > 0) & (s.dome_distance > 0)
    return (0.26 + 0.24 * strength) * soft(depth, 0.018) * s.lung * soft(sx, 0.02) * (1 - 0.9 * s.heart), mask


def infiltration(s: Scene, strength: Param, sx: Tensor, a: Param, b: Param, c: Param, *_: Tensor) -> Drawn:
    """Faint, mottled, ill-defined haze in one zone."""
    r = 0.16 + 0.10 * c
    d = ellipse(sx, s.y, 0.36 + 0.12 * a, -0.35 + 0.70 * b, r, r * 1.15)
    mottle = 0.55 + 0.45 * torch.sin(5 * texture(s.noise, s.x * 1.6, s.y * 1.6))
    return (0.07 + 0.15 * strength) * soft(d, 0.05) * mottle * s.lung, (d > 0) & (s.lung > 0.5)


def mass(s: Scene, strength: Param, sx: Tensor, a: Param, b: Param, c: Param, d: Param, e: Param, *_: Tensor) -> Drawn:
    """Round, lobulated opacity of more than 3 cm."""
    x0, y0, r = 0.30 + 0.22 * a, -0.50 + 0.75 * b, 0.095 + 0.075 * c
    angle = torch.atan2(s.y - y0, sx - x0)
    lobes = 1 + 0.10 * torch.sin(3 * angle + 6 * d) + 0.05 * torch.sin(5 * angle + 6 * e)
    dist = r * lobes - torch.hypot(sx - x0, s.y - y0)
    return (0.12 + 0.18 * strength) * soft(dist, 0.014) * s.lung, (dist > 0) & (s.lung > 0.5)


def nodule(s: Scene, strength: Param, sx: Tensor, a: Param, b: Param, c: Param, *_: Tensor) -> Drawn:
    """Small round opacity of less than 3 cm, anywhere in the lungs."""
    dist = 0.042 + 0.026 * c - torch.hypot(sx - 0.26 - 0.32 * a, s.y + 0.55 - 0.85 * b)
    return (0.22 + 0.18 * strength) * soft(dist, 0.010) * s.lung, (dist > 0) & (s.lung > 0.5)


def pneumonia(s: Scene, strength: Param, sx: Tensor, a: Param, b: Param, c: Param, d: Param, *_: Tensor) -> Drawn:
    """Segmental airspace opacity in a lower or middle zone, patchy, with air bronchograms."""
    shape = ellipse(sx, s.y, 0.34 + 0.12 * a, 0.02 + 0.25 * b, 0.20 + 0.06 * c, 0.13 + 0.05 * d, 0.5)
    shape = shape + 0.03 * texture(s.noise, s.x * 1.2 + 0.3, s.y * 1.2)
    patch = (0.09 + 0.18 * strength) * soft(shape, 0.03) * s.lung
    return patch + _air_bronchograms(s, sx, patch), (shape > 0) & (s.lung > 0.5)


def pneumothorax(s: Scene, strength: Param, sx: Tensor, a: Param, *_: Tensor) -> Drawn:
    """Air between lung and apical chest wall: dark, bounded by the thin white pleural line."""
    depth = 0.06 + 0.14 * strength + 0.05 * a
    rim = depth * (1 - 0.75 * ((s.y - s.p["apex"]) / 1.05).clamp(0, 1)) - s.side_distance
    on_side = sx > 0.10
    line = torch.exp(-((rim / (0.008 + 0.3 * s.pixel)) ** 2)) * s.lung * on_side
    return -0.14 * (soft(rim, 0.008) * s.lung * on_side) + 0.13 * line, (rim > 0) & on_side & (s.lung > 0.5)


def consolidation(s: Scene, strength: Param, sx: Tensor, a: Param, b: Param, c: Param, *_: Tensor) -> Drawn:
    """A lobe filled: dense and even, with a straight border at the fissure, and air bronchograms."""
    fissure = -0.10 + 0.12 * (a - 0.5) + 0.15 * (b - 0.5) * s.x
    upper = c > 0.45
    lobe = ellipse(sx, s.y, 0.42, torch.where(upper, -0.32, 0.16), 0.30 + 0.10 * b, 0.30)
    shape = torch.minimum(torch.where(upper, fissure - s.y, s.y - fissure - 0.10), lobe)
    patch = (0.08 + 0.20 * strength) * soft(shape, 0.016) * s.lung
    return patch + _air_bronchograms(s, sx, patch), (shape > 0) & (s.lung > 0.5)


def edema(s: Scene, strength: Param, *_: Tensor) -> Drawn:
    """Bilateral perihilar haze in the shape of bat wings, and Kerley B lines at the bases."""
    d = ellipse(s.x.abs(), s.y, 0.24, -0.02, 0.28, 0.30)
    cloud = 0.75 + 0.25 * torch.sin(4 * texture(s.noise, s.x * 1.4, s.y * 1.4))
    kerley = torch.exp(4 * (torch.cos(s.y * 95) - 1)) * soft(0.13 - s.side_distance, 0.01) * soft(s.y - 0.12, 0.03)
    added = (0.04 + 0.16 * strength) * soft(d, 0.075) * cloud + (0.03 + 0.10 * strength) * kerley
    return added * s.lung, (d > 0) & (s.lung > 0.5)


def emphysema(s: Scene, strength: Param, sx: Tensor, a: Param, b: Param, c: Param, *_: Tensor) -> Drawn:
    """Over-inflated (`change_anatomy`): flat low diaphragm, narrow heart; dark, with bullae in the upper zones."""
    dist = 0.10 + 0.07 * c - torch.hypot(sx - 0.38 - 0.12 * a, s.y + 0.48 - 0.15 * b)
    wall = torch.exp(-((dist / (0.006 + 0.3 * s.pixel)) ** 2))
    return (-(0.02 + 0.04 * strength) - 0.05 * soft(dist, 0.010) + 0.07 * wall) * s.lung, s.lung > 0.5


def fibrosis(s: Scene, strength: Param, sx: Tensor, a: Param, *_: Tensor) -> Drawn:
    """A net of fine lines at the bases and the periphery, with some loss of volume (`change_anatomy`)."""
    lines = torch.exp(-((texture(s.noise, s.x * 3.1, s.y * 3.1) / 0.25) ** 2))
    zone = torch.minimum(s.y - 0.02 + 0.15 * a, 0.30 - s.side_distance)
    return (0.13 + 0.13 * strength) * lines * (soft(zone, 0.05) * s.lung), (zone > 0) & (s.lung > 0.5)


def pleural_thickening(s: Scene, strength: Param, sx: Tensor, a: Param, b: Param, c: Param, *_: Tensor) -> Drawn:
    """A band along the lateral chest wall or a cap on the apex."""
    thick, centre = 0.035 + 0.040 * c, -0.45 + 0.65 * b
    along = 0.22 + 0.10 * a - (s.y - centre).abs()
    band = torch.minimum(thick * (along / 0.12).clamp(0, 1) - s.side_distance, along)
    on_side = sx > 0.05
    return (0.24 + 0.16 * strength) * soft(band, 0.012) * s.lung * on_side, (band > 0) & on_side & (s.lung > 0.5)


def hernia(s: Scene, strength: Param, sx: Tensor, a: Param, b: Param, c: Param, *_: Tensor) -> Drawn:
    """Stomach in the chest: a round shadow behind the heart, with air over a fluid level."""
    x0, y0, r = 0.02 + 0.14 * a, s.p["dome"] + s.p["inspiration"] - 0.12 - 0.05 * b, 0.15 + 0.05 * c
    dist = ellipse(s.x, s.y, x0, y0, r * 1.15, r)
    rim = torch.exp(-((dist / (0.012 + 0.3 * s.pixel)) ** 2))
    air, fluid = soft(dist, 0.012) * soft(y0 - s.y, 0.008), soft(dist, 0.012) * soft(s.y - y0, 0.008)
    return (0.10 + 0.08 * strength) * (fluid + rim) - (0.16 + 0.12 * strength) * air, dist > 0


# each function has its finding's name
SIGNS: dict[str, Callable[..., Drawn]] = {name: globals()[name.lower()] for name in FINDINGS}
RIGHT_SHARE = {"Pneumonia": 0.6, "Consolidation": 0.6}  # of patients with the sign on their right; others one half


def draw_sign(finding: str, s: Scene, u: Float[Tensor, "b 8"], strength: Param) -> Drawn:
    """Attenuation and mask of a finding that all images of the scene have; `u` holds its uniform numbers."""
    side, *uniforms = u[..., None, None].unbind(1)
    mirrored = s.x * torch.where(side > RIGHT_SHARE.get(finding, 0.5), 1.0, -1.0)
    return SIGNS[finding](s, strength, mirrored, *uniforms)
