"""One training step of a method, and of the bare loop that is its limit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from deepchest_utils.losses import masked_bce
from deepchest_utils.models import MultiTaskNet
from deepchest_utils.training import TrainConfig
from deepchest_utils.training.setup import autocast, make_optimizer, resolve_device
from deepchest_utils.weighting import make_method
from deepchest_utils.weighting.spec import parse_method

BARE = "bare"


@dataclass(frozen=True)
class Problem:
    """What is trained, and how: noise as images, a tenth of the labels positive. A step's cost does not depend on
    them."""

    backbone: str = "resnet18_thin"
    num_tasks: int = 14
    image_size: int = 64
    batch_size: int = 64
    device: str = "auto"
    amp: str = "off"
    channels_last: bool = True
    compiled: bool = False

    def step(self, method: str = BARE) -> Callable[[], object]:
        """A function that trains for one step. "bare": mean loss, one backward pass, the same optimiser; else a method
        as sweeps name it. Network and batch are the same in every call."""
        device = resolve_device(self.device)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = MultiTaskNet(self.backbone, self.num_tasks, self.image_size)
            x = torch.randn(self.batch_size, 1, self.image_size, self.image_size)
            y = (torch.rand(self.batch_size, self.num_tasks) < 0.1).float()
        y[0] = 1  # every task has both classes
        net, x, y = net.to(device, memory_format=layout), x.to(device, memory_format=layout), y.to(device)
        trunk = torch.compile(net.trunk) if self.compiled else net.trunk
        rule = None
        if method != BARE:
            name, options = parse_method(method)
            rule = make_method(name, self.num_tasks, **options).to(device)
            rule.begin(y.mean(0).cpu())
        optimizer = make_optimizer(TrainConfig(), net.parameters(), rule.parameters() if rule else ())

        def step() -> None:
            with autocast(self.amp, device):
                features = trunk(x)
                logits = net.head(features)
            optimizer.zero_grad(set_to_none=True)
            if rule is None:
                binary_cross_entropy_with_logits(logits.float(), y).backward()
            else:
                rule.backward(masked_bce(logits, y), features)
            optimizer.step()
            if rule is not None and rule.looks_after_step:
                with torch.no_grad():
                    rule.after_step(masked_bce(net(x), y))

        return step


@contextmanager
def count_passes(counts: list[int]) -> Iterator[None]:
    """Append to `counts` how many backward passes went through the trunk of a network that ran inside: each reaches its
    first layer once."""
    passes = 0

    def watch(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        # the first layer is the one whose input needs no gradient
        if isinstance(module, nn.Conv2d) and output.requires_grad and not inputs[0].requires_grad:
            output.register_hook(note)

    def note(gradient: Tensor) -> None:
        nonlocal passes
        passes += 1

    handle = nn.modules.module.register_module_forward_hook(watch)
    try:
        yield
    finally:
        handle.remove()
        counts.append(passes)


def passes_through_trunk(problem: Problem, method: str) -> int:
    """Backward passes through the trunk in one step."""
    step, counts = problem.step(method), []
    with count_passes(counts):
        step()
    return counts[0]
