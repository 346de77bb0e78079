"""Metrics of each finding, and the calibration of its probabilities (Platt scaling).

Labels are (N, K), NaN where unknown. Unknown labels count for no metric, and an undefined metric is NaN.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logsumexp

from deepchest_utils.files import FileError, one_line

CALIBRATION = "calibration.json"  # in the folder of a run: finding -> [slope, offset]
CALIBRATION_BINS = 15
THRESHOLD_METRICS = ("f1", "balanced_accuracy")
METRICS = {  # name -> (label of an axis, whether higher is better)
    "auroc": ("AUROC", True), "average_precision": ("average precision", True),
    "brier": ("Brier score", False), "calibration_error": ("calibration error", False),
    "loss": ("cross-entropy (nats)", False), "accuracy": ("accuracy at 0.5", True),
    "balanced_accuracy": ("balanced accuracy", True), "f1": ("F1", True),
}  # fmt: skip
Weights = Float[np.ndarray, "r n"]  # R sets of weights of the N images
PerLabel = Float[np.ndarray, "n k"]
PerTask = Float[np.ndarray, " k"]


class Ranking:
    """The known labels of one finding in falling order of score, sorted once; a bootstrap only re-weights the images.

    The methods take R sets of non-negative weights of all N images; the default, one set of ones, equals scikit-learn.
    They return NaN where a set has no positive or no negative.
    """

    def __init__(self, labels: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"]):
        self.num_images, labelled = len(labels), np.flatnonzero(~np.isnan(labels))
        self.order = labelled[np.argsort(-scores[labelled], kind="stable")]
        self.positive = labels[self.order] == 1
        sorted_scores = scores[self.order]
        self.ends = np.flatnonzero(np.append(sorted_scores[1:] != sorted_scores[:-1], True)[: len(self.order)])
        self.scores = sorted_scores[self.ends]
        # a step down the ranking is a score that holds a positive, or all scores between two of them
        sizes = np.diff(self.ends, prepend=-1)
        holds = np.bincount(np.repeat(np.arange(len(sizes)), sizes), self.positive, len(sizes)) > 0
        steps = (self.ends + 1 - sizes)[holds | np.append(True, holds)[: len(holds)]]  # the first image of each
        self.num_steps, self.classes = len(steps), list[tuple[np.ndarray, np.ndarray, np.ndarray]]()
        for images in (np.flatnonzero(self.positive), np.flatnonzero(~self.positive)):
            firsts = np.searchsorted(images, steps)
            some = np.flatnonzero(np.diff(firsts, append=len(images)))  # steps that hold one of this class
            self.classes.append((self.order[images], firsts[some], 1 + some))

    def counts(self, weights: Weights | None = None) -> tuple[Float[np.ndarray, "r s"], Float[np.ndarray, "r s"]]:
        """True and false positives at a threshold above every score, 0 each, and after each step down the ranking."""
        weights = np.ones((1, self.num_images)) if weights is None else weights
        true, false = np.zeros((2, len(weights), 1 + self.num_steps))
        for sums, (images, firsts, steps) in zip((true, false), self.classes, strict=True):
            sums[:, steps] = np.add.reduceat(weights[:, images], firsts, axis=1)
        return true.cumsum(1), false.cumsum(1)

    def auroc(self, weights: Weights | None = None) -> Float[np.ndarray, " r"]:
        """Area under the ROC curve, in [0, 1]: the share of (positive, negative) pairs in order, ties one half."""
        true, false = self.counts(weights)
        in_order = np.diff(false) * (true[:, :-1] + true[:, 1:]) / 2
        return _divide(in_order.sum(1), true[:, -1] * false[:, -1])

    def average_precision(self, weights: Weights | None = None) -> Float[np.ndarray, " r"]:
        """Mean precision over the positives, in (0, 1]."""
        true, false = self.counts(weights)
        precision = np.nan_to_num(_divide(true, true + false))[:, 1:]
        positives = np.where(false[:, -1] > 0, true[:, -1], 0)
        return _divide((np.diff(true) * precision).sum(1), positives)

    def best_thresholds(self) -> dict[str, float]:
        """The thresholds that maximise F1 and balanced accuracy; a score at or above the threshold is positive."""
        true, false = (np.cumsum(part)[self.ends] for part in (self.positive, ~self.positive))
        if not true.any() or not false.any():
            return dict.fromkeys(THRESHOLD_METRICS, np.nan)
        above, below = self.scores[:-1], self.scores[1:]
        middle = (above + below) / 2
        # neighbouring floats have no number between them
        middle = np.append(np.where(middle > below, middle, above), self.scores[-1])
        f1 = 2 * true / (true + false + true[-1])
        balanced = (true / true[-1] + 1 - false / false[-1]) / 2
        return {"f1": float(middle[f1.argmax()]), "balanced_accuracy": float(middle[balanced.argmax()])}


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN where b is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(b > 0, a / b, np.nan)


def rank_tasks(labels: PerLabel, scores: PerLabel) -> list[Ranking]:
    """The ranking of each of the K tasks."""
    return [Ranking(t, s) for t, s in zip(labels.T, scores.T, strict=True)]


def choose_thresholds(labels: PerLabel, probabilities: PerLabel) -> dict[str, PerTask]:
    """The best thresholds for F1 and for balanced accuracy on these images; give it the validation split."""
    best = [ranking.best_thresholds() for ranking in rank_tasks(labels, probabilities)]
    return {name: np.array([thresholds[name] for thresholds in best]) for name in THRESHOLD_METRICS}


def adjusted_average_precision(labels: PerLabel, scores: PerLabel, prevalence: float = 0.1) -> PerTask:
    """Average precision as if each finding had this prevalence, in (0, 1]: of a rare finding and a common one the same
    ranking has the same value. Positives and negatives are weighted to that prevalence; NaN where either is missing."""
    out = []
    for label, score in zip(labels.T, scores.T, strict=True):
        positive = label == 1
        share = np.where(positive, prevalence / max(positive.sum(), 1), (1 - prevalence) / max((label == 0).sum(), 1))
        out.append(Ranking(label, score).average_precision(share[None]))
    return np.concatenate(out)


def score_tasks(labels: PerLabel, logits: PerLabel, thresholds: dict[str, PerTask] | None = None) -> dict[str, PerTask]:
    """Every metric of METRICS for each of the K tasks; "f1" and "balanced_accuracy" need `choose_thresholds`."""
    logits = logits.astype(np.float64)
    p = expit(logits)
    has_label = ~np.isnan(labels)
    y = np.nan_to_num(labels)
    count = has_label.sum(0)
    rankings = rank_tasks(labels, logits)
    out = {
        "auroc": np.concatenate([r.auroc() for r in rankings]),
        "average_precision": np.concatenate([r.average_precision() for r in rankings]),
        "brier": _divide(((p - y) ** 2 * has_label).sum(0), count),
        "calibration_error": np.array([calibration_error(t, s) for t, s in zip(labels.T, p.T, strict=True)]),
        "loss": _divide(((np.logaddexp(0, logits) - y * logits) * has_label).sum(0), count),
        "accuracy": _divide((((p >= 0.5) == (y == 1)) * has_label).sum(0), count),
    }
    is_positive, is_negative = labels == 1, labels == 0
    positives, negatives = is_positive.sum(0), is_negative.sum(0)
    for name, threshold in (thresholds or {}).items():
        called = p >= threshold
        true, false = (called & is_positive).sum(0), (called & is_negative).sum(0)
        if name == "f1":
            value = _divide(2 * true, true + false + positives)
        else:
            value = (_divide(true, positives) + 1 - _divide(false, negatives)) / 2
        defined = (positives > 0) & (negatives > 0) & ~np.isnan(threshold)
        out[name] = np.where(defined, value, np.nan)
    return out


def ensemble(logits: Sequence[PerLabel]) -> PerLabel:
    """Logits of the mean probability of several runs on the same images: a network of many, to be scored as one."""
    z = np.asarray(logits, dtype=np.float64)
    return np.asarray(logsumexp(log_expit(z), axis=0) - logsumexp(log_expit(-z), axis=0))


def calibration_error(labels: Float[np.ndarray, " n"], probabilities: Float[np.ndarray, " n"]) -> float:
    """Expected calibration error, in [0, 1], over 15 bins of equal width (Guo et al. 2017, arXiv 1706.04599)."""
    has_label = ~np.isnan(labels)
    if not has_label.any():
        return np.nan
    y, p = labels[has_label], probabilities[has_label]
    bins = np.minimum((p * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    return float(np.abs(np.bincount(bins, weights=y - p, minlength=CALIBRATION_BINS)).sum() / len(y))


def macro(values: PerTask) -> tuple[float, int]:
    """Mean over the tasks where the metric is defined, and the number of these; (NaN, 0) where there is none."""
    defined = values[~np.isnan(values)]
    return (float(defined.mean()), len(defined)) if len(defined) else (float("nan"), 0)


def fit_calibration(labels: PerLabel, logits: PerLabel) -> Float[np.ndarray, "k 2"]:
    """Platt scaling: slope and offset of sigmoid(slope * logit + offset) with the least cross-entropy, for each task.

    Platt's targets, (P + 1) / (P + 2) and 1 / (N + 2), keep the slope finite where the logits separate the classes. The
    slope is at least 0, since a negative one would reverse the ranking. A task without a positive or without a negative
    gets (1, 0), which changes nothing. The images should be no training images.
    """
    out = np.tile([1.0, 0.0], (labels.shape[1], 1))
    for k, (label, logit) in enumerate(zip(labels.T, logits.T.astype(float), strict=True)):
        has_label = ~np.isnan(label)
        x, positive = logit[has_label], label[has_label] == 1
        count = positive.sum()
        if 0 < count < len(x):
            target = np.where(positive, (count + 1) / (count + 2), 1 / (len(x) - count + 2))

            def loss(at: np.ndarray, x: np.ndarray = x, target: np.ndarray = target) -> tuple[np.floating, np.ndarray]:
                z = at[0] * x + at[1]
                error = expit(z) - target
                return np.mean(np.logaddexp(0, z) - target * z), np.array([np.mean(error * x), np.mean(error)])

            out[k] = minimize(loss, [1.0, 0.0], jac=True, bounds=[(0, None), (None, None)]).x
    return out


def calibrate(logits: PerLabel, calibration: Float[np.ndarray, "k 2"]) -> PerLabel:
    """Probabilities from logits and the slope and offset of each task."""
    return np.asarray(expit(logits * calibration[:, 0] + calibration[:, 1]))


def read_calibration(path: Path, findings: Sequence[str]) -> Float[np.ndarray, "k 2"]:
    """The calibration of a run, in the order of `findings`. Raises FileError if the file has none for one of them."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        pairs = np.array([content[name] for name in findings], dtype=float)
        if pairs.shape == (len(findings), 2) and np.isfinite(pairs).all():
            return pairs
        reason = f"found {pairs.shape} numbers"
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        reason = one_line(error)
    raise FileError(f"{path}: should have a slope and an offset for each of {', '.join(findings)} ({reason}).")
