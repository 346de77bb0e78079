"""The facts about NIH ChestX-ray14 agree with each other and with what others publish, and are spelled
once."""

import re
from pathlib import Path

import numpy as np
import pytest

import deepchest_utils
from deepchest_utils import FINDINGS
from deepchest_utils.datasets import findings
from deepchest_utils.datasets.findings import (
    NIH_COOCCURRENCE,
    NIH_IMAGE_COUNTS,
    NIH_IMAGES,
    NIH_PREVALENCE,
    NIH_WITHOUT_FINDING,
)

PACKAGE = Path(deepchest_utils.__file__).parent
# the drawing has one function a finding; everyone else may name the few that a sentence or an alias is about
MANY_NAMES_ALLOWED = {PACKAGE / "datasets" / "findings.py", PACKAGE / "datasets" / "phantom" / "signs.py"}
# fmt: off
CHESTMNIST_LABELS = [  # in the order of the columns, from `info.py` of medmnist 3.0.2
    "atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax",
    "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia",
]
# fmt: on


def test_order_is_chestmnists():
    assert len(FINDINGS) == len(CHESTMNIST_LABELS) == findings.NUM_FINDINGS == 14
    for ours, name in zip(FINDINGS, CHESTMNIST_LABELS, strict=True):
        assert ours.lower().startswith(name)  # theirs says "pleural"


def test_cooccurrence_is_a_table_of_pairs():
    assert NIH_COOCCURRENCE.shape == (14, 14)
    np.testing.assert_array_equal(NIH_COOCCURRENCE, NIH_COOCCURRENCE.T)
    np.testing.assert_array_equal(NIH_COOCCURRENCE.diagonal(), list(NIH_IMAGE_COUNTS.values()))
    single = NIH_COOCCURRENCE.diagonal()
    assert (np.minimum.outer(single, single) >= NIH_COOCCURRENCE).all()
    assert tuple(NIH_IMAGE_COUNTS) == tuple(NIH_PREVALENCE) == FINDINGS


def test_totals_are_those_of_the_official_table():
    assert sum(NIH_IMAGE_COUNTS.values()) == 81_176  # marks, on 51,759 images
    assert NIH_IMAGES - NIH_WITHOUT_FINDING == 51_759
    pairs = np.triu(NIH_COOCCURRENCE, 1).sum()
    assert sum(NIH_IMAGE_COUNTS.values()) - pairs < 51_759  # Bonferroni: marks less pairs, images, marks


@pytest.mark.parametrize(("name", "percent"), [("Infiltration", 17.743), ("Hernia", 0.202), ("Edema", 2.054)])
def test_prevalence(name, percent):
    assert 100 * NIH_PREVALENCE[name] == pytest.approx(percent, abs=5e-4)


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(PACKAGE.rglob("*.py")) if path not in MANY_NAMES_ALLOWED],
    ids=lambda path: path.relative_to(PACKAGE).as_posix(),
)
def test_findings_are_spelled_in_one_place(path):
    text = path.read_text(encoding="utf-8").lower()
    named = [name for name in FINDINGS if re.search(rf"\b{name.lower()}\b", text)]
    assert len(named) <= 5, f"take the names from deepchest_utils.datasets.findings, not {named}"
