"""Sharing between tasks, beside one trunk for all: nothing, mixtures of trunks, or a trunk seen through attention."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d

from deepchest_utils.config import TrainConfig
from deepchest_utils.models.network import MultiTaskNet, Prevalence, prevalence_logit
from deepchest_utils.models.trunks import Backbone, Weights, build_trunk


class RowHeads(nn.Module):
    """K linear heads, each on a row of its own: (B, K, F) -> (B, K)."""

    def __init__(self, num_features: int, num_tasks: int):
        super().__init__()
        bound = num_features**-0.5  # as torch.nn.Linear
        self.weight = nn.Parameter(torch.empty(num_tasks, num_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(num_tasks))

    def forward(self, features: Float[Tensor, "b k f"]) -> Float[Tensor, "b k"]:
        return (features * self.weight).sum(-1) + self.bias


class RowNet(nn.Module):
    """A network with features (B, K, F), a row a task, in place of `MultiTaskNet` with (B, F); the same arguments."""

    trunk_per_task = True

    def __init__(
        self,
        backbone: Backbone,
        num_tasks: int,
        image_size: int = 64,
        pretrained: Weights = False,
        prevalence: Prevalence = None,
    ):
        super().__init__()
        built = [build_trunk(backbone, image_size, pretrained) for _ in range(num_tasks if self.trunk_per_task else 1)]
        self.num_tasks = num_tasks
        self.head = RowHeads(built[0][1], num_tasks)
        with torch.no_grad():
            self.head.bias.copy_(prevalence_logit(prevalence, num_tasks))
        self.connect([trunk for trunk, _ in built], backbone)

    def connect(self, trunks: list[nn.Module], backbone: Backbone) -> None:
        """Build what lies between the images and the heads of these trunks."""
        raise NotImplementedError

    def features(self, x: Float[Tensor, "b *input"]) -> Float[Tensor, "b k f"]:
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "b *input"]) -> Float[Tensor, "b k"]:
        return cast(Tensor, self.head(self.features(x)))


class SingleTask(RowNet):
    """K networks that share nothing but the batches, trained side by side: what a task reaches alone. It costs K times
    as much as one network. The epoch is chosen for all of them together."""

    def connect(self, trunks: list[nn.Module], backbone: Backbone) -> None:
        self.trunks = nn.ModuleList(trunks)

    def features(self, x: Float[Tensor, "b *input"]) -> Float[Tensor, "b k f"]:
        return torch.stack([trunk(x) for trunk in self.trunks], dim=1)


class CrossStitch(RowNet):
    """Cross-stitch networks (Misra et al. 2016, arXiv 1604.03539): K trunks whose maps are mixed after each stage,
    x_k <- sum_j alpha_kj x_j, with one learned (K, K) matrix a stage. alpha starts at 0.9 on the diagonal, and the
    others share the rest (section 4.2). Needs a ResNet."""

    def connect(self, trunks: list[nn.Module], backbone: Backbone) -> None:
        stages = [resnet_stages(trunk, backbone, "cross_stitch") for trunk in trunks]
        self.stages = nn.ModuleList(nn.ModuleList(blocks) for blocks in zip(*stages, strict=True))
        start = torch.full((self.num_tasks, self.num_tasks), 0.1 / max(self.num_tasks - 1, 1))
        start.fill_diagonal_(0.9 if self.num_tasks > 1 else 1.0)  # one task has nobody to share with
        self.alpha = nn.ParameterList(start.clone() for _ in self.stages)

    def features(self, x: Float[Tensor, "b *input"]) -> Float[Tensor, "b k f"]:
        rows: Sequence[Tensor] = [x] * self.num_tasks
        for stage, alpha in zip(cast("Iterable[nn.ModuleList]", self.stages), self.alpha, strict=True):
            maps = torch.stack([block(row) for block, row in zip(stage, rows, strict=True)])
            rows = torch.einsum("kj,jbchw->kbchw", alpha.to(maps.dtype), maps).unbind()
        return torch.stack([adaptive_avg_pool2d(row, 1).flatten(1) for row in rows], dim=1)


class MTAN(RowNet):
    """Multi-task attention network (Liu, Johns and Davison 2019, arXiv 1803.10704): one trunk, and in each of its four
    stages a soft mask a task over the stage's maps. With u and p the outputs of the stage's first part and of its last
    block, the mask is sigmoid(h_k([u; f(masked p of the stage before)])), with h_k two 1 x 1 convolutions of the task's
    own, and f a 3 x 3 convolution that the tasks share (equations 1 and 2). Needs a ResNet."""

    trunk_per_task = False

    def connect(self, trunks: list[nn.Module], backbone: Backbone) -> None:
        self.stem, *stages = resnet_stages(trunks[0], backbone, "mtan")
        self.stages = nn.ModuleList(stages)
        # a bottleneck ends with bn3, a basic block with bn2
        last_blocks: list[Any] = [stage[-1] for stage in stages]
        widths: list[int] = [getattr(block, "bn3", block.bn2).num_features for block in last_blocks]
        self.masks, self.carry = nn.ModuleList(), nn.ModuleList()
        for before, width in zip([0, *widths], widths, strict=False):
            inside, middle = (2 * width if before else width), max(width // 4, 1)
            masks = [
                nn.Sequential(*_conv(inside, middle), nn.ReLU(inplace=True), *_conv(middle, width), nn.Sigmoid())
                for _ in range(self.num_tasks)
            ]
            self.masks.append(nn.ModuleList(masks))
            carry = nn.Sequential(*_conv(before, width, 3), nn.ReLU(inplace=True)) if before else nn.Identity()
            self.carry.append(carry)

    def features(self, x: Float[Tensor, "b *input"]) -> Float[Tensor, "b k f"]:
        x = self.stem(x)
        rows: list[Any] = [None] * self.num_tasks  # no tensor yet before the first stage
        columns = cast("Iterable[nn.Sequential]", self.stages), cast("Iterable[nn.ModuleList]", self.masks)
        for stage, masks, carry in zip(*columns, self.carry, strict=True):
            u = stage[:-1](x)
            x = stage[-1](u)
            for k, mask in enumerate(masks):
                inputs = [u] if rows[k] is None else [u, adaptive_max_pool2d(carry(rows[k]), u.shape[-2:])]
                rows[k] = mask(torch.cat(inputs, dim=1)) * x
        return torch.stack([adaptive_avg_pool2d(row, 1).flatten(1) for row in rows], dim=1)


def _conv(inside: int, outside: int, kernel: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inside, outside, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(outside)


def resnet_stages(trunk: nn.Module, backbone: Backbone, architecture: str) -> list[nn.Sequential]:
    """A ResNet's stem and its four stages. Raises ValueError for another trunk."""
    names = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    children = dict(trunk.named_children())
    if not set(names) <= set(children):
        raise ValueError(f"architecture {architecture!r} needs a ResNet as backbone. Found {backbone!r}.")
    layers = cast("list[nn.Sequential]", [children[name] for name in names])
    return [nn.Sequential(*layers[:4]), *layers[4:]]


Network = MultiTaskNet | RowNet
ARCHITECTURES: dict[str, Callable[..., Network]] = {
    "hard_sharing": MultiTaskNet,
    "single_task": SingleTask,
    "cross_stitch": CrossStitch,
    "mtan": MTAN,
}


def build_network(
    config: TrainConfig, num_tasks: int, image_size: int, pretrained: Weights, prevalence: Prevalence = None
) -> Network:
    """The network of a run, with heads that start at `prevalence`, as in `MultiTaskNet`."""
    own: dict[str, Any] = {}
    if config.architecture == "hard_sharing":
        own = {"hidden": config.hidden, "head": config.head}
    return ARCHITECTURES[config.architecture](config.backbone, num_tasks, image_size, pretrained, prevalence, **own)
