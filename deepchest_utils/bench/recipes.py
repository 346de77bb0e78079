"""Other people's way to train the same network on the same data, an epoch at a time."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms import v2

from deepchest_utils.augment import MEAN, STD, to_input
from deepchest_utils.datasets import ChestXrays, Splits
from deepchest_utils.metrics import macro, score_tasks
from deepchest_utils.models import MultiTaskNet, build_trunk
from deepchest_utils.training import TrainConfig
from deepchest_utils.training.loop import Loop
from deepchest_utils.weighting import DeepChest

Recipe = Callable[[TrainConfig, Splits, Path], Iterator[float]]


def _score(data: ChestXrays, logits: Tensor) -> float:
    return macro(score_tasks(data.labels, logits.numpy(), {})["auroc"])[0]


def this_project(config: TrainConfig, data: Splits, folder: Path) -> Iterator[float]:
    """`train`'s own loop. Yields the macro AUROC on validation after each epoch, as all of them do."""
    loop = Loop(config, data)
    for _ in range(config.epochs):
        loop.one_epoch()
        yield macro(score_tasks(data.val.labels, loop.predict(data.val), {})["auroc"])[0]


class Files(Dataset):
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


def published_style(config: TrainConfig, data: Splits, folder: Path) -> Iterator[float]:
    """After the authors' published recipe: files decoded one by one, augmentation through Pillow, a two-way softmax head
    a finding, losses and accuracies read back with `.item()` a finding and batch, RMSprop. DeepChest's rule sets the
    weights."""
    tasks = len(data.findings)
    trunk, width = build_trunk(config.backbone, config.image_size)
    heads = nn.ModuleList(nn.Linear(width, 2) for _ in range(tasks))
    optimizer = torch.optim.RMSprop([*trunk.parameters(), *heads.parameters()], lr=1e-3)
    loader = DataLoader(Files(folder / "train", data.train, True), config.batch_size, shuffle=True)
    checked = DataLoader(Files(folder / "val", data.val, False), config.batch_size)
    rule = DeepChest(tasks)
    for _ in range(config.epochs):
        trunk.train()
        correct, seen, running = [0] * tasks, 0, [0.0] * tasks
        for x, y in loader:
            features = trunk(x)
            total = 0.0
            for k in range(tasks):
                out = heads[k](features)
                loss = cross_entropy(out, y[:, k].long())
                total = total + rule.weights[k].item() * loss
                running[k] += loss.item()
                correct[k] += (out.argmax(1) == y[:, k]).sum().item()
            seen += len(x)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        rule.update([c / seen for c in correct])
        trunk.eval()
        with torch.no_grad():
            outs = [torch.stack([head(f) for head in heads], 1) for x, _ in checked for f in [trunk(x)]]
        two_way = torch.cat(outs)
        yield _score(data.val, two_way[..., 1] - two_way[..., 0])


def torchjd_style(config: TrainConfig, data: Splits, folder: Path) -> Iterator[float]:
    """After TorchJD's multi-task example: a list of losses, `mtl_backward`, UPGrad on the trunk's parameters, Adam; a
    TensorDataset, no augmentation."""
    from torchjd.aggregation import UPGrad
    from torchjd.autojac import jac_to_grad, mtl_backward

    net = MultiTaskNet(config.backbone, len(data.findings), config.image_size)
    optimizer = torch.optim.Adam(net.parameters(), lr=config.lr)
    aggregator = UPGrad()
    inputs = [
        to_input(torch.from_numpy(np.ascontiguousarray(part.images))) for part in (data.train, data.val)
    ]
    labels = torch.from_numpy(data.train.labels)
    loader = DataLoader(TensorDataset(inputs[0], labels), config.batch_size, shuffle=True)
    for _ in range(config.epochs):
        net.train()
        for x, y in loader:
            features = net.features(x)
            logits = net.head(features)
            losses = [binary_cross_entropy_with_logits(logits[:, k], y[:, k]) for k in range(y.shape[1])]
            optimizer.zero_grad()
            mtl_backward(losses, features=features, retain_graph=True)
            jac_to_grad(net.trunk.parameters(), aggregator)
            optimizer.step()
        net.eval()
        with torch.no_grad():
            yield _score(data.val, torch.cat([net(x) for x in inputs[1].split(256)]))


RECIPES: dict[str, Recipe] = {
    "this project": this_project,
    "published recipe's style": published_style,
    "TorchJD's example's style": torchjd_style,
}
