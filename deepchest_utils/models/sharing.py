"""What the tasks share, beside one trunk for all: nothing, mixtures of trunks, or a trunk seen through attention.

Each network gives features (B, K, F), a row a task, and takes the place of `MultiTaskNet`, whose features (B, F) serve
all tasks.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d

from deepchest_utils.models.trunks import MultiTaskNet, build_trunk, prevalence_logit


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
    """A network whose `features` are (B, K, F)."""

    def __init__(self, num_tasks: int, num_features: int, prevalence: Float[Tensor, " k"] | None):
        super().__init__()
        self.num_tasks = num_tasks
        self.head = RowHeads(num_features, num_tasks)
        with torch.no_grad():
            self.head.bias.copy_(prevalence_logit(prevalence, num_tasks))

    def features(self, x: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b k f"]:
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b k"]:
        logits: Tensor = self.head(self.features(x))
        return logits


class SingleTask(RowNet):
    """K networks that share nothing but the batches, trained side by side: what a task reaches alone. K times the
    cost of one. The epoch is chosen for all of them together."""

    def __init__(
        self,
        backbone: str,
        num_tasks: int,
        image_size: int = 64,
        pretrained: bool = False,
        prevalence: Float[Tensor, " k"] | None = None,
    ):
        trunks, sizes = zip(*(build_trunk(backbone, image_size, pretrained) for _ in range(num_tasks)), strict=True)
        super().__init__(num_tasks, sizes[0], prevalence)
        self.trunks = nn.ModuleList(trunks)

    def features(self, x: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b k f"]:
        return torch.stack([trunk(x) for trunk in self.trunks], dim=1)


class CrossStitch(RowNet):
    """Cross-stitch networks (Misra et al. 2016, arXiv 1604.03539): K trunks whose maps are mixed after each stage,
    x_k <- sum_j alpha_kj x_j, one learned (K, K) matrix a stage. alpha starts at 0.9 on the diagonal, the rest shared
    by the others (section 4.2 of the paper). Needs a ResNet."""

    def __init__(
        self,
        backbone: str,
        num_tasks: int,
        image_size: int = 64,
        pretrained: bool = False,
        prevalence: Float[Tensor, " k"] | None = None,
    ):
        trunks, sizes = zip(*(build_trunk(backbone, image_size, pretrained) for _ in range(num_tasks)), strict=True)
        super().__init__(num_tasks, sizes[0], prevalence)
        columns = [stages(trunk, backbone, "cross_stitch") for trunk in trunks]
        self.stages = nn.ModuleList(nn.ModuleList(column[i] for column in columns) for i in range(len(columns[0])))
        start = torch.full((num_tasks, num_tasks), 0.1 / max(num_tasks - 1, 1))
        start.fill_diagonal_(0.9 if num_tasks > 1 else 1.0)  # one task has nobody to share with
        self.alpha = nn.ParameterList(start.clone() for _ in self.stages)

    def features(self, x: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b k f"]:
        rows: Sequence[Tensor] = [x] * self.num_tasks
        columns = cast("Iterable[nn.ModuleList]", self.stages)
        for stage, alpha in zip(columns, self.alpha, strict=True):
            each = torch.stack([block(row) for block, row in zip(stage, rows, strict=True)])
            rows = torch.einsum("kj,jbchw->kbchw", alpha.to(each.dtype), each).unbind()
        return torch.stack([adaptive_avg_pool2d(row, 1).flatten(1) for row in rows], dim=1)


class MTAN(RowNet):
    """Multi-task attention network (Liu, Johns and Davison 2019, arXiv 1803.10704): one trunk, and in each of its four
    stages a soft mask a task over the stage's maps. With u and p the outputs of the stage's first part and of its
    last block, the mask is sigmoid(h_k([u; f(masked p of the stage before)])), h_k two 1 x 1 convolutions of the
    task's own, f a 3 x 3 convolution that the tasks share (equations 1 and 2). Needs a ResNet."""

    def __init__(
        self,
        backbone: str,
        num_tasks: int,
        image_size: int = 64,
        pretrained: bool = False,
        prevalence: Float[Tensor, " k"] | None = None,
    ):
        trunk, num_features = build_trunk(backbone, image_size, pretrained)
        super().__init__(num_tasks, num_features, prevalence)
        self.stem, *parts = stages(trunk, backbone, "mtan")
        self.stages = nn.ModuleList(parts)
        # a bottleneck ends with bn3, a basic block with bn2
        lasts: list[Any] = [stage[-1] for stage in parts]
        widths: list[int] = [getattr(block, "bn3", block.bn2).num_features for block in lasts]
        self.masks, self.carry = nn.ModuleList(), nn.ModuleList()
        for before, width in zip([0, *widths], widths, strict=False):
            inside = 2 * width if before else width
            self.masks.append(nn.ModuleList(_mask(inside, width) for _ in range(num_tasks)))
            self.carry.append(_carry(before, width) if before else nn.Identity())

    def features(self, x: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b k f"]:
        x = self.stem(x)
        rows: list[Any] = [None] * self.num_tasks  # no tensor yet before the first stage
        columns = cast("Iterable[nn.Sequential]", self.stages), cast("Iterable[nn.ModuleList]", self.masks)
        for stage, masks, carry in zip(*columns, self.carry, strict=True):
            u = stage[:-1](x)
            x = stage[-1](u)
            for k, mask in enumerate(masks):
                if rows[k] is None:
                    seen = u
                else:
                    seen = torch.cat([u, adaptive_max_pool2d(carry(rows[k]), u.shape[-2:])], dim=1)
                rows[k] = mask(seen) * x
        return torch.stack([adaptive_avg_pool2d(row, 1).flatten(1) for row in rows], dim=1)


def _mask(inside: int, width: int) -> nn.Sequential:
    middle = max(width // 4, 1)
    return nn.Sequential(
        nn.Conv2d(inside, middle, 1, bias=False), nn.BatchNorm2d(middle), nn.ReLU(inplace=True),
        nn.Conv2d(middle, width, 1, bias=False), nn.BatchNorm2d(width), nn.Sigmoid(),
    )  # fmt: skip


def _carry(inside: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    )


def stages(trunk: nn.Module, backbone: str, architecture: str) -> list[nn.Sequential]:
    """A ResNet's stem and its four stages. Raises ValueError for a trunk that is none."""
    names = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    children = dict(trunk.named_children())
    if not set(names) <= set(children):
        raise ValueError(f"architecture {architecture!r} needs a ResNet as backbone. Found {backbone!r}.")
    layers = cast("list[nn.Sequential]", [children[n] for n in names[4:]])
    return [nn.Sequential(*(children[n] for n in names[:4])), *layers]


Network = MultiTaskNet | RowNet
ARCHITECTURES: dict[str, Callable[..., Network]] = {
    "hard_sharing": MultiTaskNet,
    "single_task": SingleTask,
    "cross_stitch": CrossStitch,
    "mtan": MTAN,
}
