"""From parameters to films: scene, attenuation, signs, exposure, noise; in batches, deterministic by seed.

Image i of a phantom depends on (seed, number of images, i) and on nothing else: its noise has a generator of
its own, so any images can be drawn again, at any size, and their masks made only where someone looks at them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from deepchest_utils.datasets.findings import NUM_FINDINGS
from deepchest_utils.datasets.phantom.anatomy import Scene, attenuation, build_scene, draw_parameters
from deepchest_utils.datasets.phantom.population import sample_population
from deepchest_utils.datasets.phantom.signs import SIGNS, change_anatomy

MAX_SIZE = 256  # px; finer detail than the drawn anatomy has
CHUNK = 128  # images drawn together: fits the cache of a small CPU at 64 px
NOISE_GRID = 24


@dataclass(frozen=True)
class Phantom:
    """A drawn population: the truth of N images, and `render` and `masks` to look at them.

    labels: (N, K) bool, what is in the image. patients: (N,), numbered from 0. parameters: name -> (N,)
    float32. visibility: (K,), how much of its usual contrast, or change of the anatomy, each sign has.
    """

    seed: int
    labels: Bool[np.ndarray, "n k"]
    patients: Int[np.ndarray, " n"]
    parameters: dict[str, np.ndarray] = field(repr=False)
    sign_uniforms: Float[np.ndarray, "n k 8"] = field(repr=False)
    strengths: Float[np.ndarray, "n k"] = field(repr=False)
    visibility: Float[np.ndarray, " k"] = field(default_factory=lambda: np.ones(NUM_FINDINGS), repr=False)

    def render(self, size: int = 64, indices: np.ndarray | None = None) -> UInt8[np.ndarray, "m {size} {size}"]:
        """Draw the images of `indices` (default: all) as uint8, 0 black."""
        return self._draw(size, indices, masks=False)

    def masks(self, size: int = 64, indices: np.ndarray | None = None) -> Bool[np.ndarray, "m k {size} {size}"]:
        """Where each finding is drawn; empty for a finding that the image does not have."""
        return self._draw(size, indices, masks=True)

    def _draw(self, size: int, indices: np.ndarray | None, masks: bool) -> np.ndarray:
        if not 28 <= size <= MAX_SIZE:
            raise ValueError(f"size should be between 28 and {MAX_SIZE} px. Found {size}.")
        indices = np.arange(len(self.labels)) if indices is None else np.asarray(indices)
        shape = (len(indices), NUM_FINDINGS, size, size) if masks else (len(indices), size, size)
        out = np.zeros(shape, bool if masks else np.uint8)
        chunk = max(8, CHUNK * 64**2 // size**2)
        for start in range(0, len(indices), chunk):
            rows = indices[start : start + chunk]
            out[start : start + chunk] = self._masks(rows, size) if masks else self._films(rows, size)
        return out

    def _scene(self, rows: np.ndarray, size: int) -> tuple[Scene, list[np.random.Generator]]:
        """The scene, and each image's generator, which goes on to the film's grain."""
        own = [self._stream(int(i), "image") for i in rows]
        grids = [g.standard_normal((NOISE_GRID, NOISE_GRID), dtype=np.float32) for g in own]
        trees = [
            self._stream(int(i), "patient").standard_normal((NOISE_GRID, NOISE_GRID), dtype=np.float32)
            for i in self.patients[rows]
        ]
        p = {k: torch.from_numpy(v[rows])[:, None, None] for k, v in self.parameters.items()}
        labels, u, strength = (torch.from_numpy(a[rows]) for a in (self.labels, self.sign_uniforms, self.strengths))
        p.update(change_anatomy(labels * torch.from_numpy(self.visibility), u, strength))
        noise = torch.from_numpy(np.stack(grids))
        return build_scene(p, torch.from_numpy(np.stack(trees)), noise, size), own

    def _stream(self, number: int, kind: str) -> np.random.Generator:
        """The generator of one image's noise, or of one patient's vessels."""
        return np.random.Generator(np.random.Philox(key=[self.seed, 2 * number + (kind == "patient")]))

    def _signs(self, scene: Scene, rows: np.ndarray) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yield (finding number, which rows have it, attenuation, mask)."""
        for k, sign in enumerate(SIGNS.values()):
            having = torch.from_numpy(np.flatnonzero(self.labels[rows, k]))
            if len(having):
                u = torch.from_numpy(self.sign_uniforms[rows, k])[having]
                strength = torch.from_numpy(self.strengths[rows, k])[having, None, None]
                yield k, having, *sign(scene.rows(having), u, strength)

    def _films(self, rows: np.ndarray, size: int) -> UInt8[np.ndarray, "m h w"]:
        scene, own = self._scene(rows, size)
        pixels = np.stack([g.standard_normal((size, size), dtype=np.float32) for g in own])
        film = attenuation(scene)
        for k, having, added, _ in self._signs(scene, rows):
            film.index_add_(0, having, added * float(self.visibility[k]))
        p = scene.p
        exposed = 1 - torch.exp(-1.25 * film.clamp(min=0.0) * p["gain"].exp())
        exposed = exposed ** (1.35 * p["gamma"].exp()) * 1.30
        grain: Tensor = torch.from_numpy(pixels) * p["noise"] * (0.7 + exposed) * (size / 64) ** 0.25
        return ((exposed + grain).clamp(0, 1) * 255).round().to(torch.uint8).numpy()

    def _masks(self, rows: np.ndarray, size: int) -> Bool[np.ndarray, "m k h w"]:
        scene, _ = self._scene(rows, size)
        out = np.zeros((len(rows), NUM_FINDINGS, size, size), bool)
        for k, having, _, mask in self._signs(scene, rows):
            out[having.numpy(), k] = mask.numpy()
        return out


def make_phantom(
    num_images: int,
    seed: int = 0,
    prevalence: Float[np.ndarray, " k"] | None = None,
    loading: Float[np.ndarray, " k"] | None = None,
    visibility: Float[np.ndarray, " k"] | None = None,
) -> Phantom:
    """Draw who has what, and every parameter of every image; nothing is rendered yet.

    num_images: at least 1. seed: non-negative; the same seed and number give the same bytes. prevalence, loading: (K,), see
    `sample_population`. visibility: (K,) at least 0, ones by default.
    """
    rng = np.random.default_rng([seed, num_images])
    population = sample_population(num_images, rng, prevalence, loading)
    patients, count = population.patients, int(population.patients[-1]) + 1
    parameters = draw_parameters(patients, count, rng)
    uniforms = rng.random((count, NUM_FINDINGS, 8), dtype=np.float32)[patients]
    strengths = rng.random((num_images, NUM_FINDINGS), dtype=np.float32)
    seen = np.ones(NUM_FINDINGS) if visibility is None else visibility
    return Phantom(seed, population.labels, patients, parameters, uniforms, strengths, seen)
