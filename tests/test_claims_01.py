"""Notebook 01: its text holds for its committed output and for the phantom; its counts and drawings do what they say."""

import re

import numpy as np
import pytest
from claims import Committed, row
from scipy.stats import chi2, poisson

from deepchest_utils.datasets import load_dataset
from deepchest_utils.datasets.findings import FINDINGS, NIH_COOCCURRENCE, NIH_IMAGES, NIH_PREVALENCE
from deepchest_utils.datasets.phantom.load import phantom_of
from deepchest_utils.results.labels import pretty
from deepchest_utils.studies.figures import data as drawn

pytestmark = pytest.mark.usefixtures("close_figures")
NOTEBOOK = Committed("01_data_exploration")
SAID = NOTEBOOK.text


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """Of the notebook's training images."""
    return phantom_of(0, "train", 6000).labels.astype(float)


@pytest.fixture(scope="module")
def pairs(labels):
    alone = labels.sum(0)
    return drawn.pair_table(labels.T @ labels, np.outer(alone, alone) / len(labels), FINDINGS)


def test_accuracies_in_the_text_are_those_shown():
    shown = NOTEBOOK.shown("draw_accuracy(scores)")
    _, absent, network, auroc_absent, auroc = row(shown, "mean")
    assert 0 < network - absent < 0.02 < 0.3 < auroc - auroc_absent
    assert f"right in {absent:.1%} of its answers, a trained network in {network:.1%}" in SAID
    assert f"a mean accuracy of {absent:.1%} and an AUROC of 0.5" in SAID
    assert (
        f"The mean accuracy rises from {absent:.1%} to {network:.1%}, by {100 * (network - absent):.1f} points" in SAID
    )
    assert f"The mean AUROC rises from 0.5 to {auroc:.2f}" in SAID
    assert auroc_absent == 0.5
    rarest = [row(shown, finding) for finding in ("Fibrosis", "Pneumonia", "Hernia")]
    for prevalence, absent, network, _, _ in rarest:
        assert prevalence < 0.019
        assert abs(network - absent) <= 0.0011
    areas = [auroc for *_, auroc in rarest]
    assert min(areas) > 0.75  # far from what accuracy says
    assert f"their AUROC lies between {min(areas):.2f} and {max(areas):.2f}" in SAID
    _, absent, network, _, auroc = row(shown, "Nodule")
    assert network < absent
    assert f"its AUROC is {auroc:.2f}" in SAID


def test_recognised_persons_in_the_text_are_those_shown():
    shown = NOTEBOOK.shown("nearest_images(data")
    found, chance = map(float, re.search(r"same person: ([\d.]+)% \(by chance ([\d.]+)%\)", shown).groups())
    assert f"{found:.0f}% of all images" in SAID
    assert "more than a hundred times as many as by chance" in SAID
    assert found > 100 * chance > 0


def test_masking_is_unbiased_and_counting_as_absent_loses_a_third():
    shown = NOTEBOOK.shown("a third unknown, masked")
    names = ("all labels", "a third unknown, masked", "a third unknown, counted as absent")
    every, masked, absent = (row(shown, name)[0] for name in names)
    assert masked == pytest.approx(every, rel=0.03)
    assert absent == pytest.approx(every * 2 / 3, rel=0.03)


def test_the_phantom_has_the_prevalences_and_pairs_of_nih(labels):
    nih = np.array(list(NIH_PREVALENCE.values()))
    assert f"{nih.max() / nih.min():.0f} times as frequent as the rarest" in SAID
    assert np.abs(np.log(labels.mean(0) / nih)).max() < np.log(1.5)
    upper = np.triu_indices(len(FINDINGS), 1)
    assert np.corrcoef((labels.T @ labels)[upper], NIH_COOCCURRENCE[upper])[0, 1] > 0.97
    assert row(NOTEBOOK.shown("data.summary()"), "Hernia") == [15, 5, 15]
    assert "Hernia has 15 positive images in train and 5 in val" in SAID


def test_the_strongest_pair_is_shown_and_not_hatched(pairs):
    best = pairs.loc["Pneumonia, Edema"]
    assert pairs.loc[pairs.p_holm < 0.05, "lift"].idxmax() == best.name
    assert not drawn.is_vague(pairs)[best.name]
    words = f"would be {best.expected:.1f} images by chance and is {best.images:.0f}. Its lift of {best.lift:.1f}"
    assert words in SAID
    assert f"NIH has {best['lift in NIH']:.1f}" in SAID
    assert f"Holm's correction for {len(pairs)} pairs" in SAID


def test_lift_and_its_interval_against_counts(pairs):
    best = pairs.loc["Pneumonia, Edema"]
    assert best.lift == pytest.approx(best.images / best.expected)
    # the interval's ends, as means, leave 2.5% on their sides
    assert poisson.sf(best.images - 1, best.low * best.expected) == pytest.approx(0.025)
    assert poisson.cdf(best.images, best.high * best.expected) == pytest.approx(0.025)
    alone = np.diag(NIH_COOCCURRENCE)
    assert best["lift in NIH"] == pytest.approx(NIH_COOCCURRENCE[6, 9] * NIH_IMAGES / alone[6] / alone[9])


def test_a_pair_never_seen_has_an_interval_from_zero_and_none_expected_is_no_test():
    together, expected = np.array([[9.0, 0.0], [0.0, 9.0]]), np.array([[1.0, 2.0], [2.0, 1.0]])
    pair = drawn.pair_table(together, expected, ["a", "b"]).iloc[0]
    assert (pair.low, pair.high) == (0, pytest.approx(chi2.ppf(0.975, 2) / 4))
    assert drawn.is_vague(drawn.pair_table(together, expected, ["a", "b"])).all()
    nobody = drawn.pair_table(together * 0, expected * 0, ["a", "b"])
    assert nobody.p_holm.isna().all()
    assert drawn.is_vague(nobody).all()
    drawn.draw_cooccurrence(nobody, ["a", "b"])


def test_related_findings_stand_side_by_side(pairs):
    ax = drawn.draw_cooccurrence(pairs, FINDINGS).axes[0]
    names = [ax.get_yticklabels()[0].get_text(), *(label.get_text() for label in ax.get_xticklabels())]
    assert sorted(names) == sorted(name.replace("_", " ") for name in FINDINGS)
    for a, b in (("Pneumonia", "Edema"), ("Pneumothorax", "Emphysema"), ("Mass", "Nodule")):
        assert abs(names.index(a) - names.index(b)) == 1
    hatched = sum(bool(patch.get_hatch()) for patch in ax.patches)
    assert hatched == drawn.is_vague(pairs).sum() == len(pairs) - len(ax.texts) + 1  # a text more: the legend


def test_the_image_most_like_another_is_its_copy():
    images = np.random.default_rng(0).integers(0, 256, (12, 64, 48), np.uint8)
    images[6:] = images[:6] // 2 + 20  # darker and with less contrast: standardised, the same
    assert drawn.nearest_images(images, side=8).tolist() == [*range(6, 12), *range(6)]
    small = drawn.shrink(images[:1], 8)
    blocks = images[0].astype(float).reshape(8, 8, 8, 6).mean((1, 3)).ravel()
    assert np.allclose(small[0], (blocks - blocks.mean()) / blocks.std(), atol=1e-4)


@pytest.mark.filterwarnings("ignore:phantom. findings without a positive")
@pytest.mark.parametrize(
    "options",
    [{}, {"difficulty": "nih"}, {"controlled": {"visibility": {"Mass": 3.0}}}, {"split": "image"}],
    ids=["usual", "hard", "controlled", "by image"],
)
def test_the_montage_shows_the_images_of_the_data(options):
    """Drawn again at the size of the data, they would be those of the data."""
    data = load_dataset("phantom", image_size=32, num_train=60, num_val=40, num_test=120, **options)
    axes = drawn.draw_montage(data).axes
    shown = [ax.images[0].get_array() for ax in axes if ax.images]
    redrawn = "split" not in options
    assert {picture.shape for picture in shown} == {(128, 128) if redrawn else (32, 32)}
    same = phantom_of(0, "test", 120, **options).render(128) if redrawn else data.test.images
    titles = [ax.get_title() for ax in axes if ax.images]
    assert len(shown) > 4
    for picture, title in zip(shown, titles, strict=True):
        rows = np.flatnonzero((same == picture).all((1, 2)))
        assert len(rows) == 1, title
        positive = [pretty(FINDINGS[k]) for k in np.flatnonzero(data.test.labels[rows[0]])]
        assert positive == ([] if title == "no finding" else [title])


@pytest.mark.parametrize("findings", [FINDINGS, ("Effusion", "Pleural_Thickening"), ("Effusion",)])
def test_the_network_is_drawn_with_its_first_and_last_heads(findings):
    for image in (None, np.zeros((8, 8), np.uint8)):
        words = [text.get_text() for text in drawn.draw_network(findings, image).axes[0].texts]
        assert f"head: {findings[0].replace('_', ' ')}" in words
        assert f"head: {findings[-1].replace('_', ' ')}" in words
        assert any("a task weight acts" in word for word in words)
