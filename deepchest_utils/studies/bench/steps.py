"""What is timed and weighed: the training step of a method, the plain step that is its limit, and the loop around them."""

import gc
import multiprocessing
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from deepchest_utils.config import TrainConfig, parse_method
from deepchest_utils.datasets import Splits
from deepchest_utils.models.losses import masked_bce
from deepchest_utils.models.network import MultiTaskNet
from deepchest_utils.training.loop import Loop
from deepchest_utils.training.setup import autocast, inputs, make_optimizer, resolve_device, training_order
from deepchest_utils.weighting import make_method

PLAIN_STEP = "bare"


@dataclass(frozen=True)
class BenchmarkSetup:
    """What is trained, and how: on noise, with a tenth of the labels positive. A step's cost does not depend on them."""

    backbone: str = "resnet18_thin"
    num_tasks: int = 14
    image_size: int = 64
    batch_size: int = 64
    device: str = "auto"
    amp: str = "off"
    channels_last: bool = True
    compiled: bool = False


def plain_step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, amp: str) -> None:
    """The limit: network, mean loss, one backward pass, optimiser."""
    with autocast(amp, x.device):
        logits = net(x)
    optimizer.zero_grad(set_to_none=True)
    binary_cross_entropy_with_logits(logits.float(), y).backward()
    optimizer.step()


class Step:
    """One training step a call, on the same network and batch; method: PLAIN_STEP, or a method as sweeps name it."""

    def __init__(self, setup: BenchmarkSetup, method: str = PLAIN_STEP):
        device, self.amp = resolve_device(setup.device), setup.amp
        layout = torch.channels_last if setup.channels_last else torch.contiguous_format
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = MultiTaskNet(setup.backbone, setup.num_tasks, setup.image_size)
            x = torch.randn(setup.batch_size, 1, setup.image_size, setup.image_size)
            y = (torch.rand(setup.batch_size, setup.num_tasks) < 0.1).float()
        y[0] = 1  # every task has both classes
        # torch's stub of `to` has no memory format beside a device
        self.net: MultiTaskNet = cast(Any, net).to(device, memory_format=layout)
        self.x, self.y = x.to(device, memory_format=layout), y.to(device)
        trunk = torch.compile(self.net.trunk) if setup.compiled else self.net.trunk
        self.trunk = cast(nn.Module, trunk)  # a compiled module is a module too
        self.trunk_and_head = nn.Sequential(self.trunk, self.net.head)
        self.rule = None
        if method != PLAIN_STEP:
            name, options = parse_method(method)
            self.rule = make_method(name, setup.num_tasks, **options).to(device)
            self.rule.begin(y.mean(0))
        rule_parameters = self.rule.parameters() if self.rule else ()
        self.optimizer = make_optimizer(TrainConfig(), self.net.parameters(), rule_parameters)

    def __call__(self) -> None:
        if self.rule is None:
            plain_step(self.trunk_and_head, self.optimizer, self.x, self.y, self.amp)
            return
        with autocast(self.amp, self.x.device):
            features = self.trunk(self.x)
            logits = self.net.head(features)
        self.optimizer.zero_grad(set_to_none=True)
        self.rule.backward(masked_bce(logits, self.y), features)
        self.optimizer.step()
        if self.rule.needs_losses_after_step:
            with torch.no_grad():
                self.rule.after_step(masked_bce(self.net(self.x), self.y))


def passes_through_trunk(setup: BenchmarkSetup, method: str) -> int:
    """Backward passes through the trunk in one step: how often gradients reach its first convolution."""
    gradients: list[Tensor] = []
    step = Step(setup, method)

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(gradients.append)

    next(m for m in step.trunk.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(watch)
    step()
    return len(gradients)


def loop_epoch(config: TrainConfig, data: Splits) -> Callable[[], object]:
    """A function that trains for one epoch with `train`'s loop, without the evaluation after it."""
    return partial(Loop(config, data).train_epoch, 1)


def plain_epoch(config: TrainConfig, data: Splits) -> Callable[[], None]:
    """A function that takes as many plain steps as `loop_epoch`, on batches that lie in memory, ready for the network."""
    loop = Loop(config, data)
    order = training_order(len(data.train), config.batch_size, torch.Generator().manual_seed(0)).numpy()
    images = list(inputs(data.train.images, order, loop.device, loop.memory_format))
    labels = torch.from_numpy(data.train.labels[order]).nan_to_num(0.0).to(loop.device)

    def epoch() -> None:
        loop.net.train()
        for x, y in zip(images, labels, strict=True):
            plain_step(loop.net, loop.optimizer, x, y, config.amp)

    return epoch


def peak_memory(setup: BenchmarkSetup, method: str) -> float:
    """Peak memory of two training steps in a process of its own, in MiB above what it held before the network was made:
    weights, gradients, moments, activations, and what the method holds. On a GPU it is what torch allocated, on the CPU the
    resident memory that Linux counts (OSError on another system)."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # a fork would start with the parent's memory
        return pool.apply(_measure_peak, (setup, method))


def _measure_peak(setup: BenchmarkSetup, method: str) -> float:
    on_gpu = resolve_device(setup.device).type == "cuda"
    torch.set_num_threads(1)  # each thread has a memory arena of its own
    warmup = BenchmarkSetup(num_tasks=2, image_size=32, batch_size=2, device=setup.device)
    Step(warmup, method)()  # imports modules and loads kernels
    gc.collect()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the peak so far
    before = 0.0 if on_gpu else resident_mib("VmRSS")
    step = Step(setup, method)
    for _ in range(2):  # the second has the optimiser's moments
        step()
    return torch.cuda.max_memory_allocated() / 2**20 if on_gpu else resident_mib("VmHWM") - before


def resident_mib(field: str) -> float:
    """What Linux says of this process: VmRSS, its memory now, or VmHWM, its peak."""
    return int(re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024
