"""The shared part of a network, read off the autograd graph: a method needs no handle on the network."""

from heapq import heappop, heappush

from torch import Tensor


def trainable_leaves(tensor: Tensor) -> list[Tensor]:
    """The trainable parameters that `tensor` was computed with, those used last first."""
    if tensor.grad_fn is None:
        return []
    leaves, visited, heap = [], {tensor.grad_fn}, [(0, 0, tensor.grad_fn)]
    while heap:
        _, _, node = heappop(heap)
        if hasattr(node, "variable"):  # where autograd would put the gradient of a leaf
            leaves.append(node.variable)
        for below, _ in node.next_functions:
            if below is not None and below not in visited:
                visited.add(below)
                # from the last operation to the first, which is not the order of distance where layers are skipped;
                # a leaf has the highest number. The second number settles ties, since nodes do not compare
                heappush(heap, (-below._sequence_nr(), len(visited), below))
    return leaves


def last_shared_layer(features: Tensor) -> Tensor:
    """The weight of the trunk's last trained layer: a matrix or a kernel, not a bias nor a scale of each channel."""
    for parameter in trainable_leaves(features):
        if parameter.ndim == 2 or (parameter.ndim > 2 and parameter[0].numel() > 1):
            return parameter
    raise ValueError("features should come from a trunk with a trainable layer. Found none: is it frozen?")
