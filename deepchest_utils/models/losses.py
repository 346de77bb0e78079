"""One loss a finding: binary cross-entropy over the labels that are known."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from deepchest_utils.distributed import all_reduce_sum, sum_over_ranks


def count_known(labels: Float[Tensor, "b k"]) -> Int[Tensor, " k"]:
    """(K,) the number of known labels of each task in the batch, that of all processes; NaN is unknown."""
    return all_reduce_sum((~labels.isnan()).sum(0))


def masked_bce(
    logits: Float[Tensor, "b k"], labels: Float[Tensor, "b k"], counts: Int[Tensor, " k"] | None = None
) -> Float[Tensor, " k"]:
    """Mean binary cross-entropy of each task over its known labels, which are 1 or 0; NaN is unknown.

    (K,) in nats, at least 0, float32 also under autocast. A task without a known label in the batch has loss 0 and gets
    no gradient. With several processes (`distributed`), the mean is over the batch of all. `counts` are those of
    `count_known`, where the caller has them.
    """
    is_known = ~labels.isnan()
    counts = count_known(labels) if counts is None else counts
    # the label is replaced before the loss: NaN * 0 would still be NaN, in the gradient too
    target, weight = labels.nan_to_num(0.0), is_known / counts.clamp(min=1)
    return sum_over_ranks(binary_cross_entropy_with_logits(logits.float(), target, weight, reduction="none").sum(0))


def prevalence_entropy(prevalence: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """H_k = -p log p - (1 - p) log(1 - p), (K,) in nats, in [0, log 2]: the loss of the best constant predictor, for
    prevalences p (K,) in [0, 1]. NaN stays NaN."""
    p = prevalence
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))
