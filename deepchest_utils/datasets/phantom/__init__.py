"""The phantom: synthetic chest radiographs with known findings and exact masks; not for training human readers.

`population` decides who has which findings, `anatomy` draws the chest, `signs` each finding as its radiographic sign.
Here they are put together and the film is exposed; `load` makes a data set of the films. Image i depends on (seed,
number of images, i) alone, as its noise has a generator of its own: any can be drawn again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from deepchest_utils.datasets.findings import FINDINGS, NUM_FINDINGS
from deepchest_utils.datasets.phantom.anatomy import Scene, attenuation, build_scene, draw_parameters
from deepchest_utils.datasets.phantom.population import Factor, sample_population
from deepchest_utils.datasets.phantom.signs import change_anatomy, draw_sign

__all__ = ["MAX_SIZE", "Phantom", "make_phantom", "sample_population"]
MAX_SIZE = 256  # px; finer detail than the drawn anatomy has
CHUNK = 128  # images drawn together: fits the cache of a small CPU at 64 px
NOISE_GRID = 24  # points a side of the smooth noise


@dataclass(frozen=True)
class Phantom:
    """A population of N images: the truth, and `render` and `masks` to look at it.

    Attributes:
        parameters: Of anatomy and exposure: name -> (N,) float32.
        sign_uniforms: Place and size of each sign, on [0, 1], the same in all images of a patient.
        strengths: Of each sign, on [0, 1].
        visibility: Share of its usual contrast, or change of the anatomy, that each sign has.
    """

    seed: int
    labels: Bool[np.ndarray, "n k"]
    patients: Int[np.ndarray, " n"]
    parameters: dict[str, np.ndarray] = field(repr=False)
    sign_uniforms: Float[np.ndarray, "n k 8"] = field(repr=False)
    strengths: Float[np.ndarray, "n k"] = field(repr=False)
    visibility: Float[np.ndarray, " k"] = field(repr=False)

    def render(self, size: int = 64, indices: np.ndarray | None = None) -> UInt8[np.ndarray, "m {size} {size}"]:
        """Draw some images (default: all), 28 to 256 px, 0 black."""
        indices, chunks = self._chunks(size, indices)
        images = np.zeros((len(indices), size, size), np.uint8)
        for chunk in chunks:
            scene, rngs = self._scene(indices[chunk], size)
            film, grain = attenuation(scene), _normal(rngs, size)
            for k, positive, added, _ in self._signs(scene, indices[chunk]):
                film.index_add_(0, positive, added * float(self.visibility[k]))
            exposed: Tensor = 1 - torch.exp(-1.25 * film.clamp(min=0.0) * scene.p["gain"].exp())
            exposed = exposed ** (1.35 * scene.p["gamma"].exp()) * 1.30
            exposed = exposed + grain * scene.p["noise"] * (0.7 + exposed) * (size / 64) ** 0.25
            images[chunk] = (exposed.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        return images

    def masks(self, size: int = 64, indices: np.ndarray | None = None) -> Bool[np.ndarray, "m k {size} {size}"]:
        """Where each finding is drawn; empty for a finding that the image does not have."""
        indices, chunks = self._chunks(size, indices)
        masks = np.zeros((len(indices), NUM_FINDINGS, size, size), bool)
        for chunk in chunks:
            scene, _ = self._scene(indices[chunk], size)
            for k, positive, _, mask in self._signs(scene, indices[chunk]):
                masks[chunk][positive.numpy(), k] = mask.numpy()
        return masks

    def _chunks(self, size: int, indices: np.ndarray | None) -> tuple[np.ndarray, list[slice]]:
        """The images, all by default, and those of them that are drawn together."""
        if not 28 <= size <= MAX_SIZE:
            raise ValueError(f"size should be between 28 and {MAX_SIZE} px. Found {size}.")
        indices = np.arange(len(self.labels)) if indices is None else np.asarray(indices)
        length = max(8, CHUNK * 64**2 // size**2)
        return indices, [slice(start, start + length) for start in range(0, len(indices), length)]

    def _scene(self, rows: np.ndarray, size: int) -> tuple[Scene, list[np.random.Generator]]:
        """The scene, and each image's generator, which then draws the film's grain."""
        rngs = self._rngs(rows)
        noise = _normal(rngs, NOISE_GRID)
        tree = _normal(self._rngs(self.patients[rows], offset=1), NOISE_GRID)
        p = {name: torch.from_numpy(values[rows])[:, None, None] for name, values in self.parameters.items()}
        labels, u, strength = (torch.from_numpy(a[rows]) for a in (self.labels, self.sign_uniforms, self.strengths))
        p.update(change_anatomy(labels * torch.from_numpy(self.visibility), u, strength))
        return build_scene(p, tree, noise, size), rngs

    def _rngs(self, numbers: np.ndarray, offset: int = 0) -> list[np.random.Generator]:
        """A generator for each image's noise, or with an offset of 1 for each patient's vessels."""
        return [np.random.Generator(np.random.Philox(key=[self.seed, 2 * n + offset])) for n in numbers.tolist()]

    def _signs(self, scene: Scene, rows: np.ndarray) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yield (number of the finding, which of the rows have it, attenuation, mask)."""
        for k, finding in enumerate(FINDINGS):
            positive = torch.from_numpy(np.flatnonzero(self.labels[rows, k]))
            if len(positive):
                u = torch.from_numpy(self.sign_uniforms[rows, k])[positive]
                strength = torch.from_numpy(self.strengths[rows, k])[positive, None, None]
                yield k, positive, *draw_sign(finding, scene.subset(positive), u, strength)


def _normal(rngs: list[np.random.Generator], size: int) -> Float[Tensor, "m {size} {size}"]:
    """Standard normal values, those of each image from its own generator."""
    return torch.from_numpy(np.stack([rng.standard_normal((size, size), np.float32) for rng in rngs]))


def make_phantom(
    num_images: int, seed: int = 0, prevalence: Factor = None, loading: Factor = None, visibility: Factor = None
) -> Phantom:
    """Draw who has what, and every parameter of every image: the same bytes for the same arguments.

    Args:
        prevalence, loading: See `sample_population`.
        visibility: Of each sign, at least 0; 1 by default.
    """
    rng = np.random.default_rng([seed, num_images])
    labels, patients = sample_population(num_images, rng, prevalence, loading)
    num_patients = int(patients[-1]) + 1
    parameters = draw_parameters(patients, num_patients, rng)
    sign_uniforms = rng.random((num_patients, NUM_FINDINGS, 8), dtype=np.float32)[patients]
    strengths = rng.random((num_images, NUM_FINDINGS), dtype=np.float32)
    visibility = np.ones(NUM_FINDINGS) if visibility is None else visibility
    return Phantom(seed, labels, patients, parameters, sign_uniforms, strengths, visibility)
