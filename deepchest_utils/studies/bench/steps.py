"""One training step of a method, and of the bare loop that is its limit."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from deepchest_utils.config import TrainConfig
from deepchest_utils.models.losses import masked_bce
from deepchest_utils.models.trunks import MultiTaskNet
from deepchest_utils.training.setup import autocast, make_optimizer, resolve_device
from deepchest_utils.weighting import make_method
from deepchest_utils.weighting.spec import parse_method

PLAIN_STEP = "bare"


@dataclass(frozen=True)
class BenchmarkSetup:
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


def bare_step(
    net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, amp: str, device: torch.device
) -> None:
    """The limit: network, mean loss, one backward pass, optimiser."""
    with autocast(amp, device):
        logits = net(x)
    optimizer.zero_grad(set_to_none=True)
    binary_cross_entropy_with_logits(logits.float(), y).backward()
    optimizer.step()


class Step:
    """One training step a call, on the same network and batch each time. method: "bare" (`bare_step`), or a method as
    sweeps name it."""

    def __init__(self, problem: BenchmarkSetup, method: str = PLAIN_STEP):
        self.device, self.amp = resolve_device(problem.device), problem.amp
        layout = torch.channels_last if problem.channels_last else torch.contiguous_format
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = MultiTaskNet(problem.backbone, problem.num_tasks, problem.image_size)
            x = torch.randn(problem.batch_size, 1, problem.image_size, problem.image_size)
            y = (torch.rand(problem.batch_size, problem.num_tasks) < 0.1).float()
        y[0] = 1  # every task has both classes
        # torch's stub of `to` has no memory format beside a device
        self.net: MultiTaskNet = cast(Any, net).to(self.device, memory_format=layout)
        self.x = x.to(self.device, memory_format=layout)
        self.y = y.to(self.device)
        trunk = torch.compile(self.net.trunk) if problem.compiled else self.net.trunk
        self.trunk = cast(nn.Module, trunk)  # a module when it is compiled, too
        self.whole = nn.Sequential(self.trunk, self.net.head)
        self.rule = None
        if method != PLAIN_STEP:
            name, options = parse_method(method)
            self.rule = make_method(name, problem.num_tasks, **options).to(self.device)
            self.rule.begin(y.mean(0))
        own = self.rule.parameters() if self.rule else ()
        self.optimizer = make_optimizer(TrainConfig(), self.net.parameters(), own)

    def __call__(self) -> None:
        if self.rule is None:
            bare_step(self.whole, self.optimizer, self.x, self.y, self.amp, self.device)
            return
        with autocast(self.amp, self.device):
            features = self.trunk(self.x)
            logits = self.net.head(features)
        self.optimizer.zero_grad(set_to_none=True)
        self.rule.backward(masked_bce(logits, self.y), features)
        self.optimizer.step()
        if self.rule.needs_losses_after_step:
            with torch.no_grad():
                self.rule.after_step(masked_bce(self.net(self.x), self.y))


def passes_through_trunk(problem: BenchmarkSetup, method: str) -> int:
    """Backward passes through the trunk in one step: each reaches its first layer once."""
    passes = 0

    def note(gradient: Tensor) -> None:
        nonlocal passes
        passes += 1

    def watch(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        # the first layer is the one whose input needs no gradient
        if isinstance(module, nn.Conv2d) and output.requires_grad and not inputs[0].requires_grad:
            output.register_hook(note)

    step = Step(problem, method)
    handle = nn.modules.module.register_module_forward_hook(watch)
    try:
        step()
    finally:
        handle.remove()
    return passes
