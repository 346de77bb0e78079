"""Probabilities that mean what they say: Platt's scaling (Platt 1999) of each finding's logit, fitted on validation."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from deepchest_utils.files import FileError, brief

CALIBRATION = "calibration.json"  # in the folder of a run: finding -> [slope, offset]


def fit_calibration(
    labels: Float[np.ndarray, "n k"], logits: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, "k 2"]:
    """Slope and offset for each task, (K, 2): those of sigmoid(slope * logit + offset) with the least cross-entropy.

    labels: 1, 0, NaN, of images the network was not trained on. (1, 0), which changes nothing, for a task without a
    positive and a negative. Platt's targets, (P + 1) / (P + 2) and 1 / (N + 2), keep the slope finite where the logits
    separate the classes. A slope below 0 would turn the ranking round; it is held at 0.
    """
    out = np.tile([1.0, 0.0], (labels.shape[1], 1))
    for k, (label, logit) in enumerate(zip(labels.T, logits.T.astype(float), strict=True)):
        known = ~np.isnan(label)
        x, positive = logit[known], label[known] == 1
        count = positive.sum()
        if 0 < count < len(x):
            target = np.where(positive, (count + 1) / (count + 2), 1 / (len(x) - count + 2))

            def loss(
                at: np.ndarray, x: np.ndarray = x, target: np.ndarray = target
            ) -> tuple[np.floating, np.ndarray]:
                z = at[0] * x + at[1]
                error = 1 / (1 + np.exp(-z.clip(-700, 700))) - target
                return np.mean(np.logaddexp(0, z) - target * z), np.array(
                    [np.mean(error * x), np.mean(error)]
                )

            out[k] = minimize(loss, [1.0, 0.0], jac=True, bounds=[(0, None), (None, None)]).x
    return out


def calibrate(
    logits: Float[np.ndarray, "n k"], calibration: Float[np.ndarray, "k 2"]
) -> Float[np.ndarray, "n k"]:
    """Probabilities, (N, K)."""
    z = logits * calibration[:, 0] + calibration[:, 1]
    probabilities: np.ndarray = 1 / (1 + np.exp(-z.clip(-700, 700)))
    return probabilities


def read_calibration(path: Path, findings: Sequence[str]) -> Float[np.ndarray, "k 2"]:
    """The file of a run, in the order of `findings`. Raises FileError if it is of others, or no calibration."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        pairs = np.array([found[name] for name in findings], dtype=float)
        if pairs.shape == (len(findings), 2) and np.isfinite(pairs).all():
            return pairs
        reason = f"found {pairs.shape} numbers"
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        reason = brief(error)
    raise FileError(
        f"{path}: should have a slope and an offset for each of {', '.join(findings)} ({reason})."
    )
