"""Three tasks that share one direction in the plane: the toy of notebook 02, whose best compromise is known."""

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import norm
from torch import Tensor

from deepchest_utils.models.losses import prevalence_entropy

ANGLES = (0.0, 60.0, 80.0)  # degrees that the tasks A, B and C want
PREVALENCES = (0.40, 0.02, 0.01)
SLOPE = 2.0  # of each task's logit along its own direction
_ALONG = np.linspace(-7, 7, 281)  # a standard normal coordinate, in steps of 0.05
_DENSITY = norm.pdf(_ALONG) / norm.pdf(_ALONG).sum()


def intercept(prevalence: float) -> float:
    """b for which the labels drawn with probability sigmoid(SLOPE s + b), s standard normal, have this prevalence."""
    return float(brentq(lambda b: _DENSITY @ expit(SLOPE * _ALONG + b) - prevalence, -30, 30))


def draw_tasks(n: int, rng: np.random.Generator) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n 3"]]:
    """Points of the plane, standard normal, and the labels of the three tasks: logistic, each along its own angle."""
    x = rng.standard_normal((n, 2))
    radians = np.deg2rad(ANGLES)
    logits = SLOPE * x @ [np.cos(radians), np.sin(radians)] + [intercept(p) for p in PREVALENCES]
    return torch.tensor(x).float(), torch.tensor(rng.random((n, 3)) < expit(logits)).float()


def exact_auroc(degrees: float) -> Float[np.ndarray, " 3"]:
    """The tasks' AUROC for points projected onto this angle, by quadrature, so without the luck of test points.

    Along a line at an angle d to a task's own, a point with the task's coordinate s lies at cos(d) s + sin(d) n with n
    standard normal and independent of the label. So a positive at s is above a negative at s' with probability
    Phi(cos(d) (s - s') / (sqrt(2) |sin(d)|)), which is averaged over both."""
    apart = np.subtract.outer(_ALONG, _ALONG)
    scores = []
    for angle, p in zip(ANGLES, PREVALENCES, strict=True):
        d = np.deg2rad(degrees - angle)
        positive = _DENSITY * expit(SLOPE * _ALONG + intercept(p))
        above = norm.cdf(np.cos(d) * apart / max(np.sqrt(2) * abs(np.sin(d)), 1e-9))
        scores.append(positive @ above @ (_DENSITY - positive) / (p * (1 - p)))
    return np.array(scores)


def exact_relative_loss(degrees: float) -> Float[np.ndarray, " 3"]:
    """The tasks' lowest L/H for points projected onto this angle, by quadrature: that of the true probability of a
    positive, given where the projected point lies."""
    scores = []
    for angle, p in zip(ANGLES, PREVALENCES, strict=True):
        d = np.deg2rad(degrees - angle)
        logits = SLOPE * np.add.outer(np.cos(d) * _ALONG, np.sin(d) * _ALONG) + intercept(p)
        q = torch.tensor(expit(logits) @ _DENSITY)  # mean over what the projection does not show
        loss, entropy = prevalence_entropy(q), prevalence_entropy(torch.tensor([p]))
        scores.append(_DENSITY @ loss.numpy() / entropy.item())
    return np.array(scores)
