"""The data card, the model card and the checklists: their numbers are those of code and tables, their items complete."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deepchest_utils import FINDINGS, TrainConfig
from deepchest_utils.datasets.findings import NIH_IMAGES, NIH_PREVALENCE
from deepchest_utils.datasets.phantom import MAX_SIZE
from deepchest_utils.datasets.phantom.load import SIZES
from deepchest_utils.datasets.phantom.population import MAX_IMAGES_PER_PATIENT, PERSISTENCE, sample_population
from deepchest_utils.models.network import MultiTaskNet

ROOT = Path(__file__).resolve().parents[1]
PHANTOM = (ROOT / "data" / "PHANTOM.md").read_text()
MODEL = (ROOT / "deepchest_utils" / "MODEL_CARD.md").read_text()
CLAIM = (ROOT / "CLAIM.md").read_text()
STATES = {"yes", "part", "no", "N/A"}


def test_data_card_has_the_phantom_s_own_numbers():
    train, val, test = (f"{SIZES[name]:,}" for name in ("train", "val", "test"))
    assert f"{train} for training, {val} for validation, {test} for test; 28 to {MAX_SIZE} px" in PHANTOM
    assert f"share {PERSISTENCE} of the latent variance" in PHANTOM
    assert f"{NIH_IMAGES:,} labels of NIH" in PHANTOM
    _, patients = sample_population(20_000, np.random.default_rng(0))
    assert f"{20_000 / (patients[-1] + 1):.1f} images a patient on average, at most {MAX_IMAGES_PER_PATIENT}" in PHANTOM


def test_model_card_describes_the_default_configuration():
    config = TrainConfig()
    net = MultiTaskNet(config.backbone, len(FINDINGS), config.image_size)
    assert f"| parameters | {sum(p.numel() for p in net.parameters()):,} |" in MODEL
    assert [stage[0].conv1.out_channels for stage in (getattr(net.trunk, f"layer{i}") for i in range(1, 5))] == [
        16, 32, 64, 128,
    ]  # fmt: skip
    assert f"{config.image_size} x {config.image_size} px" in MODEL
    line = re.search(r"^\| training \| (.*) \|$", MODEL, re.MULTILINE).group(1)
    values = (config.lr, config.weight_decay, config.batch_size, config.epochs)
    said = "AdamW, peak rate {}, cosine schedule, weight decay {}, batches of {}, {} epochs".format(*values)
    assert line == said
    assert (config.optimizer, config.schedule, config.augment) == ("adamw", "cosine", True)
    assert config.backbone in MODEL
    assert config.dataset == "phantom"
    assert config.loss == "bce"


@pytest.mark.parametrize(
    ("label", "name"), [("phantom, 4,000 training images", "phantom"), ("NIH sample", "nih_sample")]
)
def test_model_card_has_the_committed_scores(label, name):
    table = pd.read_csv(ROOT / "data" / "results" / f"{name}_summary.csv").query("baseline == 'itself'")
    table = table.set_index(["task", "metric", "method"])
    for method, title in (("equal", "Equal"), ("deepchest", "DeepChest")):
        rows = [table.loc["macro", metric, method] for metric in ("auroc", "average_precision")]
        cells = [f"{row['mean']:.3f} [{row.low:.3f}, {row.high:.3f}]" for row in rows]
        assert f"| {label} | {title} | {cells[0]} | {cells[1]} |" in MODEL
    text = MODEL.partition("On the phantom Equal" if name == "phantom" else "On the real sample")[2].partition(". ")[0]
    scores = table.xs(("auroc", "equal"), level=("metric", "method"))["mean"]
    lowest = scores[[*FINDINGS]].sort_values().head(3)
    assert re.findall(r"([A-Z]\w+) \(", text) == [*lowest.index]
    assert re.findall(r"0\.\d\d", text) == [f"{value:.2f}" for value in lowest]
    assert f"{1000 * NIH_PREVALENCE['Hernia']:.0f} of 1,000" in MODEL


@pytest.mark.parametrize(("title", "count"), [("CLAIM 2024", 44), ("TRIPOD+AI", 27)])
def test_every_item_of_the_checklist_is_answered(title, count):
    table = CLAIM.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \| (.+?) \|$", table, re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, count + 1))
    assert {state for *_, state, _ in rows} == STATES
    assert all(where for *_, where in rows)


def test_files_that_the_checklist_names_exist():
    package = ROOT / "deepchest_utils"
    names = set(re.findall(r"`([\w/.]+\.(?:py|sh|txt))`", CLAIM))
    assert len(names) >= 5
    for name in names:
        assert any((folder / name).exists() for folder in (ROOT, package, ROOT / "data" / "results")), name
