"""What of a network the tasks share, read off the autograd graph: a method needs no handle on the network."""

from collections import deque

from torch import Tensor


def parameters_below(tensor: Tensor) -> list[Tensor]:
    """The trainable parameters that `tensor` was computed with, nearest first."""
    if tensor.grad_fn is None:
        return []
    found, seen, queue = [], {tensor.grad_fn}, deque([tensor.grad_fn])
    while queue:
        node = queue.popleft()
        if hasattr(node, "variable"):  # where autograd would put the gradient of a leaf
            found.append(node.variable)
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                queue.append(below)
    return found


def last_shared_layer(features: Tensor) -> Tensor:
    """The weight of the layer nearest to the features (a matrix or a kernel: not a bias or a normalisation's
    scale).

    Raises ValueError if the trunk has none that is trained.
    """
    for parameter in parameters_below(features):
        if parameter.ndim > 1:
            return parameter
    raise ValueError("features should come from a trunk with a trainable layer. Found none: is it frozen?")
