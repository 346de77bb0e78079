"""Three ways to train the same network on the same data. The `epoch()` of each trains for one epoch and returns the macro
AUROC on validation."""

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


def _macro_auroc(data: ChestXrays, logits: Tensor) -> float:
    return macro(score_tasks(data.labels, logits.numpy(), {})["auroc"])[0]


class ThisProject:
    """`train`'s own loop."""

    def __init__(self, config: TrainConfig, data: Splits, folder: Path):
        self.loop = Loop(config, data)

    def epoch(self) -> float:
        self.loop.run_epoch()
        macro_auroc = {"split": "val", "task": "macro", "metric": "auroc"}
        rows = (row for row in reversed(self.loop.history) if macro_auroc.items() <= row.items())
        auroc: float = next(rows)["value"]
        return auroc


class Files(Dataset[tuple[Tensor, Tensor]]):
    """A file an image, decoded and augmented by Pillow each time it is read."""

    def __init__(self, folder: Path, data: ChestXrays, augment: bool):
        self.folder, self.labels = folder, torch.from_numpy(data.labels)
        folder.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(data.images):
            Image.fromarray(image).save(folder / f"{i}.png")
        augmentation = [v2.RandomAffine(7, (0.05, 0.05), (0.9, 1.1)), v2.ColorJitter(0.15, 0.15)] if augment else []
        to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([MEAN], [STD])]
        self.transform = v2.Compose([*augmentation, *to_tensor])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with Image.open(self.folder / f"{index}.png") as image:
            return self.transform(image.convert("L")), self.labels[index]


class PublishedStyle:
    """After the authors' published recipe: files decoded one by one, augmentation by Pillow, a two-way softmax head for each
    finding, losses and accuracies read back with `.item()` for each finding and batch, RMSprop. DeepChest's rule sets the
    weights."""

    def __init__(self, config: TrainConfig, data: Splits, folder: Path):
        self.val, tasks = data.val, len(data.findings)
        self.trunk, width = build_trunk(config.backbone, config.image_size)
        self.heads = nn.ModuleList(nn.Linear(width, 2) for _ in range(tasks))
        self.optimizer = torch.optim.RMSprop([*self.trunk.parameters(), *self.heads.parameters()], lr=1e-3)
        self.train_loader = DataLoader(Files(folder / "train", data.train, True), config.batch_size, shuffle=True)
        self.val_loader = DataLoader(Files(folder / "val", data.val, False), config.batch_size)
        self.rule = DeepChest(tasks)

    def epoch(self) -> float:
        self.trunk.train()
        tasks = len(self.heads)
        correct, num_images, running_loss = [0] * tasks, 0, [0.0] * tasks
        for x, y in self.train_loader:
            features = self.trunk(x)
            total: Any = 0.0  # from the first head on a tensor
            for k, head in enumerate(self.heads):
                logits = head(features)
                loss = cross_entropy(logits, y[:, k].long())
                total = total + self.rule.weights[k].item() * loss
                running_loss[k] += loss.item()
                correct[k] += (logits.argmax(1) == y[:, k]).sum().item()
            num_images += len(x)
            self.optimizer.zero_grad()
            total.backward()
            self.optimizer.step()
        self.rule.update([c / num_images for c in correct])
        self.trunk.eval()
        with torch.no_grad():
            features = torch.cat([self.trunk(x) for x, _ in self.val_loader])
            two_way = torch.stack([head(features) for head in self.heads], 1)
        return _macro_auroc(self.val, two_way[..., 1] - two_way[..., 0])


class TorchJDStyle:
    """After TorchJD's multi-task example: a list of losses, `mtl_backward`, UPGrad on the trunk's parameters, Adam; a
    TensorDataset, no augmentation."""

    def __init__(self, config: TrainConfig, data: Splits, folder: Path):
        self.val = data.val
        self.net = MultiTaskNet(config.backbone, len(data.findings), config.image_size)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=config.lr)
        self.aggregator = UPGrad()
        x, self.val_x = (to_input(torch.from_numpy(np.array(split.images))) for split in (data.train, data.val))
        train = TensorDataset(x, torch.from_numpy(data.train.labels))
        self.train_loader = DataLoader(train, config.batch_size, shuffle=True)

    def epoch(self) -> float:
        self.net.train()
        for x, y in self.train_loader:
            features = self.net.features(x)
            logits = self.net.head(features)
            losses = [binary_cross_entropy_with_logits(logits[:, k], y[:, k]) for k in range(y.shape[1])]
            self.optimizer.zero_grad()
            mtl_backward(losses, features=features, retain_graph=True)
            jac_to_grad(self.net.trunk.parameters(), self.aggregator)
            self.optimizer.step()
        self.net.eval()
        with torch.no_grad():
            return _macro_auroc(self.val, torch.cat([self.net(x) for x in self.val_x.split(256)]))


RECIPES: dict[str, type[ThisProject | PublishedStyle | TorchJDStyle]] = {
    "this project": ThisProject,
    "published recipe's style": PublishedStyle,
    "TorchJD's example's style": TorchJDStyle,
}
