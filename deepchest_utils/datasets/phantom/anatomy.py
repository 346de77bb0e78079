"""The normal chest: outline, lungs, heart, diaphragm, bones and vessels, as smooth attenuation over anatomical space.

The coordinate x runs to the right of the image (the patient's left), y downwards, both over about [-1, 1]. B images are
drawn at once: a parameter has shape (B, 1, 1), a field (B, H, W). Attenuation adds up along the beam; bone and fluid
raise it, air lowers it.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Field = Float[Tensor, "b h w"]
Param = Float[Tensor, "b 1 1"]
Value = float | Param

PATIENT = {  # name: (mean, standard deviation) over patients
    "thorax_width": (0.76, 0.045), "apex": (-0.80, 0.035), "dome": (0.46, 0.05), "dome_left": (0.05, 0.025),
    "heart_radius": (0.315, 0.027), "heart_x": (0.10, 0.03), "heart_tilt": (0.45, 0.18),
    "mediastinum": (0.125, 0.02), "knob": (0.085, 0.02),
    "rib_spacing": (0.150, 0.014), "rib_phase": (0.0, 0.5), "rib_contrast": (0.085, 0.025),
    "clavicle_tilt": (0.22, 0.09), "breast": (-0.1, 1.0), "fat": (0.0, 1.0), "vessels": (0.075, 0.015),
}  # fmt: skip
IMAGE = {  # the same over the images of a patient: positioning, inspiration, exposure
    "rotation": (0.0, 0.02), "shift_x": (0.0, 0.015), "shift_y": (0.0, 0.015), "scale": (0.98, 0.015),
    "inspiration": (0.0, 0.018), "ap": (-0.3, 1.0),
    "gain": (0.0, 0.13), "gamma": (0.0, 0.16), "noise": (0.020, 0.006),
}  # fmt: skip


def soft(distance: Field, width: Value) -> Field:
    """1 inside (distance > 0), 0 outside, with an edge of the given width."""
    return torch.sigmoid(distance / width)


def ellipse(x: Field, y: Field, cx: Value, cy: Value, rx: Value, ry: Value, tilt: Value = 0.0) -> Field:
    """Approximate distance to the border of an ellipse, positive inside; `tilt` in radians."""
    tilt = torch.as_tensor(tilt)
    dx, dy = x - cx, y - cy
    u, v = (dx * tilt.cos() + dy * tilt.sin()) / rx, (dy * tilt.cos() - dx * tilt.sin()) / ry
    return (1 - torch.sqrt(u * u + v * v + 1e-9)) * torch.minimum(torch.as_tensor(rx), torch.as_tensor(ry))


def texture(noise: Float[Tensor, "b n n"], u: Field, v: Field) -> Field:
    """Smooth noise at (u, v) in [-1, 1], reflected outside; its standard deviation is about 0.7."""
    grid = torch.stack([u, v], dim=-1)
    return torch.nn.functional.grid_sample(noise[:, None], grid, padding_mode="reflection", align_corners=False)[:, 0]


@dataclass
class Scene:
    """What the signs need of B images: coordinates, anatomy, and soft masks of lung and heart."""

    x: Field
    y: Field
    pixel: float  # its width
    p: dict[str, Param]  # the values of `PATIENT`, `IMAGE` and `change_anatomy`
    tree: Float[Tensor, "b n n"]  # noise of the patient: the vessels
    noise: Float[Tensor, "b n n"]  # noise of the image
    side_distance: Field  # to the inner chest wall, positive inside
    dome_distance: Field  # to the diaphragm, positive above
    lung: Field
    heart: Field

    def subset(self, rows: Tensor) -> "Scene":
        """The same for some of the images."""
        fields: dict[str, Any] = {k: value[rows] for k, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, p={name: value[rows] for name, value in self.p.items()}, **fields)


def draw_parameters(patients: np.ndarray, num_patients: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Normal values cut at 2.5 standard deviations, name -> (N,)."""
    parameters = {}
    for table, count, owner in ((PATIENT, num_patients, patients), (IMAGE, len(patients), slice(None))):
        for name, (mean, std) in table.items():
            values = mean + std * rng.standard_normal(count).clip(-2.5, 2.5)
            parameters[name] = values[owner].astype(np.float32)
    return parameters


def build_scene(p: dict[str, Param], tree: Float[Tensor, "b n n"], noise: Float[Tensor, "b n n"], size: int) -> Scene:
    """Place the coordinates and find lungs and heart; `p` also holds the values of `change_anatomy`."""
    ap = (p["ap"] > 0).float()  # antero-posterior: the film of a patient in bed
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    row, column = torch.meshgrid(line, line, indexing="ij")
    cos, sin = p["rotation"].cos(), p["rotation"].sin()
    scale = p["scale"] * (1 + 0.03 * ap)
    dx, dy = (column - p["shift_x"]) / scale, (row - p["shift_y"]) / scale
    x, y = cos * dx + sin * dy, cos * dy - sin * dx
    # the inner chest wall
    height = 1.10 + 0.05 * p["hyperinflation"]
    rise = ((y - (p["apex"] + height)) / height).abs().clamp(max=1.0)
    side = p["thorax_width"] * (1 - rise**2.4).clamp(min=0.0) ** (1 / 2.2) - x.abs()
    # the two domes of the diaphragm
    left = torch.sigmoid(x / 0.03)
    top = p["dome"] + p["inspiration"] - 0.05 * ap + p["dome_left"] * left
    top = top - p["volume_loss_left"] * left - p["volume_loss_right"] * (1 - left) + 0.12 * p["hyperinflation"]
    bow = x.abs() - 0.33
    dome = top + (0.85 - 0.62 * p["hyperinflation"]) * bow**2 * torch.where(bow < 0, 0.25, 1.0) - y

    edge = 0.012 + 0.25 * 2 / size
    radius = p["heart_radius"] * (1 + 0.10 * ap) * (1 + p["cardiomegaly"]) * (1 - 0.10 * p["hyperinflation"])
    heart_x = p["heart_x"] + 0.22 * p["cardiomegaly"] * radius
    heart_y = p["dome"] + p["inspiration"] - 0.52 * radius
    heart = soft(ellipse(x, y, heart_x, heart_y, radius, 0.78 * radius, p["heart_tilt"]), edge * 1.2)
    return Scene(x, y, 2 / size, p, tree, noise, side, dome, soft(side, edge) * soft(dome, edge), heart)


def attenuation(s: Scene) -> Field:
    """The normal chest: about 0.2 in the lungs, 1 in the abdomen, 0 in the air beside the patient."""
    x, y, p, ax = s.x, s.y, s.p, s.x.abs()
    ap = (p["ap"] > 0).float()
    edge = 0.012 + 0.25 * s.pixel
    # trunk, shoulders and neck; below the diaphragm the abdomen
    torso = p["thorax_width"] + 0.12 + 0.02 * p["fat"] - 0.05 * (y - 0.2) ** 2 + 0.35 * soft(-(y + 0.35), 0.06)
    shoulder = y + 0.92 - 0.42 * (ax - 0.2).clamp(min=0.0) + 0.25 * (ax - 0.2).clamp(min=0.0) ** 2
    body = torch.maximum(soft(torch.minimum(torso - ax, shoulder), 0.02), soft(0.24 - ax, 0.03))
    a = body * (0.78 + 0.05 * p["fat"] + 0.16 * soft(-s.dome_distance, edge))
    # air in the lungs, less towards the chest wall
    lung_air = 0.60 + 0.02 * p["fat"]
    a = a - lung_air * s.lung * (1 - 0.35 * soft(-(s.side_distance - 0.02), 0.05))
    # mediastinum with aortic knob, heart, trachea
    knob = soft(ellipse(x, y, p["mediastinum"] + 0.02, -0.27, p["knob"], p["knob"] * 1.3), edge)
    width = p["mediastinum"] + 0.05 * ap * soft(y + 0.2, 0.2) + 0.04 * soft(-(y + 0.45), 0.08)
    central = torch.maximum(torch.maximum(soft(width - (x - 0.01).abs(), edge), knob), s.heart)
    a = a + central * s.lung * (lung_air - 0.06) + 0.05 * central * body
    a = a - 0.13 * soft(0.045 - (x + 0.012 * (y + 0.5)).abs(), edge) * soft(-(y + 0.22), 0.04)
    # spine; ribs, whose fronts run the other way and are fainter; clavicles and shoulder blades
    spine = soft(0.085 - x.abs(), 0.02) * (0.07 + 0.02 * torch.cos(y * 42)) * body
    lateral = ax / p["thorax_width"]
    within = soft(s.side_distance + 0.03, 0.02) * soft(y - p["apex"], 0.02)
    posterior, anterior = y - 0.10 * lateral + 0.10 * lateral**2 - 0.34 * lateral**4, y + 0.62 * lateral - 0.30
    ribs = torch.exp(2.2 * (torch.cos((posterior / p["rib_spacing"] + p["rib_phase"]) * 2 * torch.pi) - 1))
    front = torch.exp(2.2 * (torch.cos((anterior / p["rib_spacing"]) * 2 * torch.pi) - 1)) * soft(lateral - 0.35, 0.06)
    bones = p["rib_contrast"] * within * (ribs + 0.55 * front) * (0.45 + 0.55 * soft(s.dome_distance, 0.05))
    line = -0.50 - p["clavicle_tilt"] * (ax - 0.1) - 0.05 * torch.sin((ax - 0.1) * 8) - 0.06 * ap
    clavicle = soft(0.030 - (y - line).abs(), 0.010 + 0.2 * s.pixel) * soft(ax - 0.08, 0.02) * soft(0.82 - ax, 0.03)
    scapula = soft(ellipse(ax, y, 0.86 - 0.14 * ap, -0.32, 0.13, 0.36, 0.25), 0.03)
    a = a + spine + bones + (0.17 * clavicle + (0.05 + 0.03 * ap) * scapula) * body
    # breasts, in some; the air bubble of the stomach below the left dome
    breast = soft(ellipse(ax, y, 0.42, 0.20 + 0.05 * p["fat"], 0.30, 0.27), 0.03)
    a = a + (0.06 + 0.02 * p["fat"]) * ((p["breast"] > 0) * breast)
    bubble = soft(ellipse(x, y, 0.36, p["dome"] + p["dome_left"] + 0.17, 0.14, 0.09), edge)
    a = a - 0.22 * bubble * soft(-s.dome_distance, edge)
    # vessels: lines of noise in polar coordinates around the hilum, thinner outwards
    hx, hy = ax - p["mediastinum"] - 0.06, y + 0.02
    radius = torch.sqrt(hx**2 + 0.6 * hy**2 + 1e-4)
    angle = torch.atan2(hy, hx) / torch.pi
    tree = texture(s.tree, angle * 0.9 + 0.05 * torch.sign(x), radius.log() / 4 + 0.4 * torch.sign(x))
    vessels = torch.exp(-((tree / 0.22) ** 2)) * torch.exp(-radius / 0.30) * (1 - 0.55 * p["hyperinflation"])
    hilum = torch.exp(-((hx / 0.09) ** 2) - (hy / 0.13) ** 2)
    return a + s.lung * (p["vessels"] * 2.0 * vessels + 0.10 * hilum)
