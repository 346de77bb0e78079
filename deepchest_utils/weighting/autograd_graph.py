"""The shared part of a network, read off the autograd graph: a method needs no handle on the network."""

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Any

from torch import Tensor


def trainable_leaves(tensor: Tensor) -> list[Tensor]:
    """The leaves with a gradient, as a rule parameters, that `tensor` was computed with, those used last first."""
    return [leaf for leaf, _ in _leaves_and_users(tensor)]


def _leaves_and_users(tensor: Tensor) -> Iterator[tuple[Tensor, str]]:
    """With the name of the operation that used each last."""
    visited: set[Any] = {tensor.grad_fn}
    heap: list[Any] = [(0, 0, tensor.grad_fn, "")] if tensor.grad_fn else []
    while heap:
        _, _, node, user = heappop(heap)
        if hasattr(node, "variable"):  # where autograd would put the gradient of a leaf
            yield node.variable, user
        for below, _ in node.next_functions:
            if below is not None and below not in visited:
                visited.add(below)
                # from the last operation to the first, which is not the order of distance where layers are skipped;
                # a leaf has the highest number. The second number settles ties, since nodes do not compare
                heappush(heap, (-below._sequence_nr(), len(visited), below, node.name()))


def last_shared_layer(features: Tensor) -> Tensor:
    """The weight of the trunk's last trained layer: a matrix or a kernel, not a bias nor a scale of each channel. ValueError
    without one, or if a compiled function hides the order of layers."""
    for parameter, user in _leaves_and_users(features):
        if parameter.ndim == 2 or (parameter.ndim > 2 and parameter[0].numel() > 1):
            if "CompiledFunction" in user:
                raise ValueError("features should come from a trunk without torch.compile, which hides its last layer.")
            return parameter
    raise ValueError("features should come from a trunk with a trainable layer. Found none: is it frozen?")


def check_apart(features: Tensor, losses: Tensor) -> None:
    """ValueError if the node that made the features made more that the losses were computed with: a compiled function is
    one node, in which the trunk cannot be told from the heads."""
    visited, edges = set(), [(losses.grad_fn, losses.output_nr)]
    while edges:
        node, output = edges.pop()
        if node is not None and node is features.grad_fn and output != features.output_nr:
            raise ValueError(
                "features should be all that heads and losses see of the trunk: compile trunk and heads apart."
            )
        if node is not None and node is not features.grad_fn and node not in visited:
            visited.add(node)
            edges += node.next_functions
