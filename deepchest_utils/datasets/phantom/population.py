"""Who has which findings: NIH's prevalence and co-occurrence, several images a patient, findings that persist.

A Gaussian copula (multivariate probit). Image i of patient p has a latent vector z = sqrt(r) u_p + sqrt(1 - r) v_i with
u_p, v_i ~ N(0, R) and r = `PERSISTENCE`. Finding k is present where z_k exceeds the normal quantile of 1 -
prevalence_k. For every image z is N(0, R), so prevalence and co-occurrence do not depend on r. R_jk is solved for each
pair so that the bivariate normal tail equals the share of NIH images with both findings. The matrix is then moved to
the nearest correlation matrix: negative eigenvalues to zero, diagonal back to one.
"""

from functools import cache

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import ndtr, ndtri

from deepchest_utils.datasets.findings import NIH_COOCCURRENCE, NIH_IMAGES, NUM_FINDINGS

PERSISTENCE = 0.7  # share of the latent variance that a patient's images have in common
MAX_IMAGES_PER_PATIENT = 12
Array = Float[np.ndarray, "*s"]
Factor = Float[np.ndarray, " k"] | None  # a value a finding


def joint_tail(a: Array, b: Array, rho: Array) -> Array:
    """P(X > a, Y > b) for a standard bivariate normal with correlation rho: Plackett's identity, dP / drho = the
    density at (a, b), integrated over rho = sin(t) by 40-point Gauss-Legendre (Drezner and Wesolowsky 1990)."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    limit = np.arcsin(rho)[..., None]
    t = limit * (nodes + 1) / 2
    a, b = a[..., None], b[..., None]
    density = np.exp(-(a**2 + b**2 - 2 * a * b * np.sin(t)) / (2 * np.cos(t) ** 2)) / (2 * np.pi)
    independent = (1 - ndtr(a[..., 0])) * (1 - ndtr(b[..., 0]))
    return np.asarray(independent + (density * weights).sum(-1) * limit[..., 0] / 2)


@cache
def latent_correlation() -> Float[np.ndarray, "k k"]:
    """The correlation R of the latent normals, from NIH's co-occurrence counts."""
    joint = NIH_COOCCURRENCE / NIH_IMAGES
    threshold = -ndtri(joint.diagonal())
    a, b = np.meshgrid(threshold, threshold, indexing="ij")
    low, high = np.full_like(joint, -0.95), np.full_like(joint, 0.95)
    for _ in range(40):  # the tail grows with rho: bisection, all pairs at once
        middle = (low + high) / 2
        too_small = joint_tail(a, b, middle) < joint
        low, high = np.where(too_small, middle, low), np.where(too_small, high, middle)
    correlation = (low + high) / 2
    np.fill_diagonal(correlation, 1.0)
    values, vectors = np.linalg.eigh(correlation)
    correlation = (vectors * values.clip(1e-6)) @ vectors.T
    scale = np.sqrt(correlation.diagonal())
    return np.asarray(correlation / np.outer(scale, scale))


def sample_population(
    num_images: int, rng: np.random.Generator, prevalence: Factor = None, loading: Factor = None
) -> tuple[Bool[np.ndarray, "n k"], Int[np.ndarray, " n"]]:
    """Labels of N images, and their patients, numbered from 0 in order, with 3.3 images on average (NIH's have 3.6).

    Args:
        prevalence: In (0, 1); NIH's by default.
        loading: In [0, 1]: the latent correlation of two findings is the product of theirs; NIH's by default.
    """
    if num_images < 1:
        raise ValueError(f"num_images should be at least 1. Found {num_images}.")
    images = np.minimum(rng.geometric(0.3, size=num_images), MAX_IMAGES_PER_PATIENT)
    patients = np.repeat(np.arange(num_images), images)[:num_images]
    if loading is None:
        correlation = latent_correlation()
    else:
        correlation = np.outer(loading, loading)
        np.fill_diagonal(correlation, 1.0)
    factor = np.linalg.cholesky(correlation + 1e-9 * np.eye(NUM_FINDINGS))
    of_patient = rng.standard_normal((patients[-1] + 1, NUM_FINDINGS))[patients]
    of_image = rng.standard_normal((num_images, NUM_FINDINGS))
    latent = (np.sqrt(PERSISTENCE) * of_patient + np.sqrt(1 - PERSISTENCE) * of_image) @ factor.T
    threshold = -ndtri(NIH_COOCCURRENCE.diagonal() / NIH_IMAGES if prevalence is None else prevalence)
    return latent > threshold, patients
