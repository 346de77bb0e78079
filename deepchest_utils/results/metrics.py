"""What is measured of each finding. Labels are (N, K) with NaN = unknown, which every metric leaves out; an
undefined metric is NaN.

`Ranking` holds one finding sorted once, so that a bootstrap re-weights the images instead of sorting again;
with weights of one it equals scikit-learn.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from deepchest_utils.files import FileError, one_line

CALIBRATION_BINS = 15
THRESHOLD_METRICS = ("f1", "balanced_accuracy")
METRICS = {  # name: (words for an axis, whether higher is better)
    "auroc": ("AUROC", True),
    "average_precision": ("average precision", True),
    "brier": ("Brier score", False),
    "calibration_error": ("calibration error", False),
    "loss": ("cross-entropy (nats)", False),
    "accuracy": ("accuracy at 0.5", True),
    "balanced_accuracy": ("balanced accuracy", True),
    "f1": ("F1", True),
}


class Ranking:
    """One finding's known labels in falling order of score; tied scores are one step.

    labels: (N,), 1, 0 or NaN. scores: (N,), higher means more likely. Weights in the methods are (R, N), R
    sets of non-negative image weights, over all N images, unknown ones included; default one set of ones.
    They return (R,), NaN where a set has no positive or no negative.
    """

    def __init__(self, labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"]):
        known = np.flatnonzero(~np.isnan(labels))
        order = known[np.argsort(-scores[known], kind="stable")]
        self.order, self.positive = order, labels[order] == 1
        ranked = scores[order]
        last = np.append(ranked[1:] != ranked[:-1], True)[: len(order)]
        self.ends = np.flatnonzero(last)
        self.scores = ranked[self.ends]

    def counts(
        self, weights: Float[np.ndarray, "r n"] | None = None
    ) -> tuple[Float[np.ndarray, "r g"], Float[np.ndarray, "r g"]]:
        """True and false positives when everything down to each of the G distinct scores is called positive,
        (R, G) each."""
        ranked = np.ones((1, len(self.order))) if weights is None else weights[:, self.order]
        true = np.cumsum(ranked * self.positive, axis=1)[:, self.ends]
        false = np.cumsum(ranked * ~self.positive, axis=1)[:, self.ends]
        return true, false

    def auroc(self, weights: Float[np.ndarray, "r n"] | None = None) -> Float[np.ndarray, " r"]:
        """Area under the ROC curve, in [0, 1]: the share of (positive, negative) pairs in the right order,
        ties one half."""
        true, false = self.counts(weights)
        if true.shape[1] == 0:
            return np.full(len(true), np.nan)
        step = np.diff(false, axis=1, prepend=0)
        before = true - np.diff(true, axis=1, prepend=0)
        return _divide((step * (before + true)).sum(1) / 2, true[:, -1] * false[:, -1])

    def average_precision(self, weights: Float[np.ndarray, "r n"] | None = None) -> Float[np.ndarray, " r"]:
        """Mean precision over the positives, in (0, 1]; NaN without a positive (and, as the AUROC, without a
        negative)."""
        true, false = self.counts(weights)
        if true.shape[1] == 0:
            return np.full(len(true), np.nan)
        precision = np.nan_to_num(_divide(true, true + false))
        total = np.where(false[:, -1] > 0, true[:, -1], 0)
        return _divide((np.diff(true, axis=1, prepend=0) * precision).sum(1), total)

    def best_thresholds(self) -> dict[str, float]:
        """The thresholds (a score at or above is positive) that maximise F1 and balanced accuracy; NaN where
        undefined."""
        true, false = (c[0] for c in self.counts())
        if len(true) == 0 or true[-1] == 0 or false[-1] == 0:
            return dict.fromkeys(THRESHOLD_METRICS, np.nan)
        above, below = self.scores[:-1], self.scores[1:]
        middle = (above + below) / 2
        middle = np.where(middle > below, middle, above)  # neighbouring numbers have none between them
        middle = np.append(middle, self.scores[-1])
        f1 = 2 * true / (true + false + true[-1])
        balanced = (true / true[-1] + 1 - false / false[-1]) / 2
        return {"f1": float(middle[f1.argmax()]), "balanced_accuracy": float(middle[balanced.argmax()])}


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN where b is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(b > 0, a / b, np.nan)


def rank_tasks(labels: Float[np.ndarray, "n k"], scores: Float[np.ndarray, "n k"]) -> list[Ranking]:
    """The ranking of each of the K tasks."""
    return [Ranking(t, s) for t, s in zip(labels.T, scores.T, strict=True)]


def choose_thresholds(
    labels: Float[np.ndarray, "n k"], probabilities: Float[np.ndarray, "n k"]
) -> dict[str, Float[np.ndarray, " k"]]:
    """For F1 and for balanced accuracy, the (K,) thresholds that are best on these images: take the
    validation split."""
    each = [ranking.best_thresholds() for ranking in rank_tasks(labels, probabilities)]
    return {name: np.array([found[name] for found in each]) for name in THRESHOLD_METRICS}


def score_tasks(
    labels: Float[np.ndarray, "n k"],
    logits: Float[np.ndarray, "n k"],
    thresholds: dict[str, Float[np.ndarray, " k"]] | None = None,
) -> dict[str, Float[np.ndarray, " k"]]:
    """Every metric of `METRICS`, (K,) each.

    labels: 1, 0, NaN. logits: before the sigmoid. thresholds: of the probability, for "f1" and
    "balanced_accuracy" (from `choose_thresholds` on the validation split); those without are left out.
    """
    logits = logits.astype(np.float64)
    p = 1 / (1 + np.exp(-logits.clip(-700, 700)))
    known = ~np.isnan(labels)
    y = np.nan_to_num(labels)
    count = known.sum(0)
    rankings = rank_tasks(labels, logits)
    out = {
        "auroc": np.concatenate([r.auroc() for r in rankings]),
        "average_precision": np.concatenate([r.average_precision() for r in rankings]),
        "brier": _divide(((p - y) ** 2 * known).sum(0), count),
        "calibration_error": np.array([calibration_error(t, s) for t, s in zip(labels.T, p.T, strict=True)]),
        "loss": _divide(((np.logaddexp(0, logits) - y * logits) * known).sum(0), count),
        "accuracy": _divide((((p >= 0.5) == (y == 1)) * known).sum(0), count),
    }
    positives, negatives = ((y == 1) & known).sum(0), ((y == 0) & known).sum(0)
    for name, threshold in (thresholds or {}).items():
        called = p >= threshold
        true = (called & (y == 1) & known).sum(0)
        false = (called & (y == 0) & known).sum(0)
        if name == "f1":
            value = _divide(2 * true, true + false + positives)
        else:
            value = (_divide(true, positives) + 1 - _divide(false, negatives)) / 2
        defined = (positives > 0) & (negatives > 0) & ~np.isnan(threshold)
        out[name] = np.where(defined, value, np.nan)
    return out


def calibration_error(labels: Float[np.ndarray, " n"], probabilities: Float[np.ndarray, " n"]) -> float:
    """Expected calibration error over 15 bins of equal width (Guo et al. 2017, arXiv 1706.04599), in [0, 1];
    NaN without a known label."""
    known = ~np.isnan(labels)
    if not known.any():
        return np.nan
    y, p = labels[known], probabilities[known]
    bins = np.minimum((p * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gap = np.bincount(bins, weights=y - p, minlength=CALIBRATION_BINS)
    return float(np.abs(gap).sum() / len(y))


def macro(values: Float[np.ndarray, " k"]) -> tuple[float, int]:
    """Mean over the tasks where the metric is defined, and how many those are; (NaN, 0) where there is
    none."""
    defined = values[~np.isnan(values)]
    return (float(defined.mean()), len(defined)) if len(defined) else (float("nan"), 0)


CALIBRATION = "calibration.json"  # in the folder of a run: finding -> [slope, offset]


def fit_calibration(labels: Float[np.ndarray, "n k"], logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "k 2"]:
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

            def loss(at: np.ndarray, x: np.ndarray = x, target: np.ndarray = target) -> tuple[np.floating, np.ndarray]:
                z = at[0] * x + at[1]
                error = 1 / (1 + np.exp(-z.clip(-700, 700))) - target
                return np.mean(np.logaddexp(0, z) - target * z), np.array([np.mean(error * x), np.mean(error)])

            out[k] = minimize(loss, [1.0, 0.0], jac=True, bounds=[(0, None), (None, None)]).x
    return out


def calibrate(logits: Float[np.ndarray, "n k"], calibration: Float[np.ndarray, "k 2"]) -> Float[np.ndarray, "n k"]:
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
        reason = one_line(error)
    raise FileError(f"{path}: should have a slope and an offset for each of {', '.join(findings)} ({reason}).")
