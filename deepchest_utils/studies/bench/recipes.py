"""Three ways to train the same network on the same data. Each has `epoch()`: train for one, and return the macro AUROC on
validation."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchjd.aggregation import UPGrad
from torchjd.autojac import jac_to_grad, mtl_backward
from torchvision.transforms import v2

from deepchest_utils.config import TrainConfig
from deepchest_utils.datasets import ChestXrays, Splits
from deepchest_utils.models.augment import MEAN, STD, to_input
from deepchest_utils.models.trunks import MultiTaskNet, build_trunk
from deepchest_utils.results.metrics import macro, score_tasks
from deepchest_utils.training.loop import Loop
from deepchest_utils.weighting import DeepChest


def _score(data: ChestXrays, logits: Tensor) -> float:
    return macro(score_tasks(data.labels, logits.numpy(), {})["auroc"])[0]


class ThisProject:
    """`train`'s own loop."""

    def __init__(self, config: TrainConfig, data: Splits, folder: Path):
        self.loop, self.val = Loop(config, data), data.val

    def epoch(self) -> float:
        self.loop.one_epoch()
        macro_auroc = {"split": "val", "task": "macro", "metric": "auroc"}
        found: float = next(row["value"] for row in reversed(self.loop.rows) if macro_auroc.items() <= row.items())
        return found


class Files(Dataset[tuple[Tensor, Tensor]]):
    """An image a file, decoded and augmented by Pillow each time it is asked for."""

    def __init__(self, folder: Path, data: ChestXrays, augment: bool):
        self.folder, self.labels = folder, torch.from_numpy(data.labels)
        folder.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(data.images):
            Image.fromarray(image).save(folder / f"{i}.png")
        moved = [v2.RandomAffine(7, (0.05, 0.05), (0.9, 1.1)), v2.ColorJitter(0.15, 0.15)] if augment else []
        tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([MEAN], [STD])]
        self.transform = v2.Compose([*moved, *tensor])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with Image.open(self.folder / f"{index}.png") as image:
            return self.transform(image.convert("L")), self.labels[index]


class PublishedStyle:
    """After the authors' published recipe: files decoded one by one, augmentation through Pillow, a two-way softmax head a
    finding, losses and accuracies read back with `.item()` a finding and batch, RMSprop. DeepChest's rule sets the
    weights."""

    def __init__(self, config: TrainConfig, data: Splits, folder: Path):
        self.val, tasks = data.val, len(data.findings)
        self.trunk, width = build_trunk(config.backbone, config.image_size)
        self.heads = nn.ModuleList(nn.Linear(width, 2) for _ in range(tasks))
        self.optimizer = torch.optim.RMSprop([*self.trunk.parameters(), *self.heads.parameters()], lr=1e-3)
        self.train = DataLoader(Files(folder / "train", data.train, True), config.batch_size, shuffle=True)
        self.check = DataLoader(Files(folder / "val", data.val, False), config.batch_size)
        self.rule = DeepChest(tasks)

    def epoch(self) -> float:
        self.trunk.train()
        tasks = len(self.heads)
        correct, seen, running = [0] * tasks, 0, [0.0] * tasks
        for x, y in self.train:
            features = self.trunk(x)
            total: Any = 0.0  # from the first head on a tensor
            for k, head in enumerate(self.heads):
                out = head(features)
                loss = cross_entropy(out, y[:, k].long())
                total = total + self.rule.weights[k].item() * loss
                running[k] += loss.item()
                correct[k] += (out.argmax(1) == y[:, k]).sum().item()
            seen += len(x)
            self.optimizer.zero_grad()
            total.backward()
            self.optimizer.step()
        self.rule.update([c / seen for c in correct])
        self.trunk.eval()
        with torch.no_grad():
            outs = [torch.stack([head(f) for head in self.heads], 1) for x, _ in self.check for f in [self.trunk(x)]]
        two_way = torch.cat(outs)
        return _score(self.val, two_way[..., 1] - two_way[..., 0])


class TorchJDStyle:
    """After TorchJD's multi-task example: a list of losses, `mtl_backward`, UPGrad on the trunk's parameters, Adam; a
    TensorDataset, no augmentation."""

    def __init__(self, config: TrainConfig, data: Splits, folder: Path):
        self.val = data.val
        self.net = MultiTaskNet(config.backbone, len(data.findings), config.image_size)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=config.lr)
        self.aggregator = UPGrad()
        x, self.inputs = (to_input(torch.from_numpy(np.array(part.images))) for part in (data.train, data.val))
        train = TensorDataset(x, torch.from_numpy(data.train.labels))
        self.train = DataLoader(train, config.batch_size, shuffle=True)

    def epoch(self) -> float:
        self.net.train()
        for x, y in self.train:
            features = self.net.features(x)
            logits = self.net.head(features)
            losses = [binary_cross_entropy_with_logits(logits[:, k], y[:, k]) for k in range(y.shape[1])]
            self.optimizer.zero_grad()
            mtl_backward(losses, features=features, retain_graph=True)
            jac_to_grad(self.net.trunk.parameters(), self.aggregator)
            self.optimizer.step()
        self.net.eval()
        with torch.no_grad():
            return _score(self.val, torch.cat([self.net(x) for x in self.inputs.split(256)]))


RECIPES: dict[str, type[ThisProject | PublishedStyle | TorchJDStyle]] = {
    "this project": ThisProject,
    "published recipe's style": PublishedStyle,
    "TorchJD's example's style": TorchJDStyle,
}
