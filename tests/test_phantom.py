"""The phantom: same seed same bytes, NIH's prevalence and co-occurrence, findings drawn where their masks
say, no shortcut by brightness."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation
from scipy.stats import multivariate_normal
from sklearn.metrics import roc_auc_score

from deepchest_utils.datasets.findings import (
    FINDINGS,
    NIH_COOCCURRENCE,
    NIH_IMAGES,
    NIH_PREVALENCE,
    NIH_WITHOUT_FINDING,
)
from deepchest_utils.datasets.phantom import make_phantom, population, sample_population
from deepchest_utils.datasets.phantom.signs import SIGNS

PREVALENCE = np.array([NIH_PREVALENCE[name] for name in FINDINGS])


@pytest.fixture(scope="module")
def many():
    """40,000 images' labels and parameters; drawn only where a test asks for it."""
    return make_phantom(40_000, seed=11)


def having(phantom, name: str, count: int, value: bool = True) -> np.ndarray:
    """`count` images with (or without) a finding, at random."""
    rows = np.flatnonzero(phantom.labels[:, FINDINGS.index(name)] == value)
    return np.sort(np.random.default_rng(0).choice(rows, count, replace=False))


def without(phantom, name: str):
    """The same patients and films, had they not had the finding."""
    labels = phantom.labels.copy()
    labels[:, FINDINGS.index(name)] = False
    return replace(phantom, labels=labels)


# --- determinism


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def test_other_seed_other_phantom():
    first, second = make_phantom(60, seed=0), make_phantom(60, seed=1)
    assert (first.labels != second.labels).any()
    assert (first.render(28) != second.render(28)).mean() > 0.9


@pytest.mark.parametrize(("num_images", "size"), [(600, 32), (11, 256)])
def test_some_images_are_drawn_as_among_all(num_images, size):
    """128 images of 64 px are drawn together, and as many pixels at other sizes: the rows here fall into
    other groups than among all."""
    phantom = make_phantom(num_images, seed=5)
    images, masks = phantom.render(size), phantom.masks(size)
    for rows in ([num_images - 1], np.arange(3, num_images, 4), np.arange(num_images)[::-1]):
        np.testing.assert_array_equal(phantom.render(size, np.asarray(rows)), images[rows])
        np.testing.assert_array_equal(phantom.masks(size, np.asarray(rows)), masks[rows])


def test_other_process_same_bytes():
    """With one thread instead of all: the bytes depend on neither."""
    phantom = make_phantom(40, seed=3)
    code = (
        "import hashlib; from deepchest_utils.datasets.phantom import make_phantom; p = make_phantom(40, seed=3);"
        "print(*(hashlib.sha256(a.tobytes()).hexdigest() for a in (p.labels, p.render(64), p.masks(64))))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output.split() == [digest(a) for a in (phantom.labels, phantom.render(64), phantom.masks(64))]


# --- who has which findings


@pytest.mark.parametrize(
    ("a", "b", "rho"),
    [(1.0, 2.0, 0.5), (1.3, 2.8, -0.4), (2.9, 2.2, 0.9), (0.0, 0.0, 0.3), (1.0, 1.0, 0.0), (-1.0, 0.5, 0.7)],
)
def test_joint_tail_is_scipys(a, b, rho):
    expected = multivariate_normal([0, 0], [[1, rho], [rho, 1]]).cdf([-a, -b])
    found = population.joint_tail(np.array([a]), np.array([b]), np.array([rho]))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_latent_correlation_gives_nihs_pairs():
    """Solved pair by pair and then moved to a correlation matrix: the move costs no pair more than 2 % of its
    images."""
    correlation = population.latent_correlation()
    np.testing.assert_allclose(correlation.diagonal(), 1)
    np.testing.assert_allclose(correlation, correlation.T)
    assert np.linalg.eigvalsh(correlation).min() > 0
    threshold = -population.ndtri(PREVALENCE)
    i, j = np.triu_indices(14, 1)
    joint = population.joint_tail(threshold[i], threshold[j], correlation[i, j])
    np.testing.assert_allclose(joint, NIH_COOCCURRENCE[i, j] / NIH_IMAGES, rtol=0.02)


def test_labels_follow_nih():
    """Within 4 binomial standard errors, for as few independent patients as there can be.

    Labels of one patient's images depend on each other. If they were all equal, a share p over patients with
    n_i images would have the variance p (1 - p) sum n_i^2 / N^2: about 5 times the binomial one. That bound
    is the tolerance, for prevalence, for all 91 pairs and for images without any finding.
    """
    present, patients = sample_population(200_000, np.random.default_rng(2))
    images = np.bincount(patients)
    labels = present.astype(float)

    def tolerance(share):
        return 4 * np.sqrt(share * (1 - share) * (images**2).sum()) / len(labels)

    target = NIH_COOCCURRENCE / NIH_IMAGES
    obtained = labels.T @ labels / len(labels)
    assert (np.abs(obtained - target) < tolerance(target)).all()
    # pairs that chance would bring together three times less often, or more often, are told apart
    attract = target > 3 * np.outer(PREVALENCE, PREVALENCE)
    assert attract[FINDINGS.index("Pneumonia"), FINDINGS.index("Edema")]
    assert (obtained > 2 * np.outer(PREVALENCE, PREVALENCE))[attract].all()
    normal = NIH_WITHOUT_FINDING / NIH_IMAGES  # not fitted, only implied by the pairs: 1 % is allowed on top
    assert abs(1 - present.any(1).mean() - normal) < tolerance(normal) + 0.01
    assert images.max() <= population.MAX_IMAGES_PER_PATIENT
    assert 3.0 < images.mean() < 3.6


def test_findings_persist_within_a_patient(many):
    """After an image with a finding, the patient's next has it five times as often as any image, the
    commonest findings in 40 % of cases."""
    next_one = np.flatnonzero(np.diff(many.patients) == 0) + 1
    for k, share in enumerate(PREVALENCE):
        before = many.labels[next_one - 1, k]
        again = many.labels[next_one, k][before].mean()
        assert again > min(5 * share, 0.4), FINDINGS[k]
        assert again < 0.9, FINDINGS[k]  # and comes and goes


def test_persistence_leaves_strangers_independent(many):
    """The last image of one patient says nothing about the first of the next."""
    first = np.flatnonzero(np.diff(many.patients)) + 1
    for k, share in enumerate(PREVALENCE):
        both = (many.labels[first, k] & many.labels[first - 1, k]).mean()
        assert abs(both - share**2) < 4 * np.sqrt(share**2 / len(first)) + 1 / len(first), FINDINGS[k]


@pytest.mark.parametrize("count", [0, -3])
def test_no_image(count):
    with pytest.raises(ValueError, match="num_images should be at least 1"):
        sample_population(count, np.random.default_rng(0))


# --- films


@pytest.mark.parametrize("size", [28, 33, 64, 256])
def test_sizes(size):
    phantom = make_phantom(3, seed=0)
    images, masks = phantom.render(size), phantom.masks(size)
    assert (images.shape, images.dtype) == ((3, size, size), np.uint8)
    assert (masks.shape, masks.dtype) == ((3, 14, size, size), bool)
    assert images.reshape(3, -1).std(1).min() > 20  # an image, not a grey field


@pytest.mark.parametrize("size", [0, 27, 257, -64])
def test_sizes_refused(size):
    phantom = make_phantom(2)
    with pytest.raises(ValueError, match=f"between 28 and 256 px. Found {size}"):
        phantom.render(size)
    with pytest.raises(ValueError, match="size"):
        phantom.masks(size)


def test_sizes_show_the_same_chest():
    """Averaged down, the film of 128 px is that of 64 px, but for the noise."""
    phantom = make_phantom(30, seed=8)
    small, large = phantom.render(64).astype(float), phantom.render(128).astype(float)
    large = large.reshape(30, 64, 2, 64, 2).mean((2, 4))
    for a, b in zip(small, large, strict=True):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.97


def test_a_patient_is_recognisable(many):
    """Two normal films of one patient are more alike than two patients', so that a split by image leaks."""
    normal = ~many.labels.any(1)
    first = np.flatnonzero((np.diff(many.patients) == 0) & normal[1:] & normal[:-1])[:200]
    films = many.render(32, np.concatenate([first, first + 1])).reshape(400, -1).astype(float)
    alike = np.corrcoef(films)[:200, 200:]
    assert alike.diagonal().mean() > alike.mean() + 0.01


def test_brightness_is_no_shortcut(many):
    """AUROC of an image's mean brightness, each finding with up to 300 more positives than the random images
    have.

    At 32 px: the mean of an image is the same at every size. With the 90 images of the rarest finding, an
    AUROC is known to about 0.03.
    """
    rng = np.random.default_rng(1)
    sample = rng.choice(len(many.labels), 3500, replace=False)
    positives = [
        np.union1d(sample[many.labels[sample, k]], rng.permutation(np.flatnonzero(many.labels[:, k]))[:300])
        for k in range(14)
    ]
    rows = np.unique(np.concatenate([sample, *positives]))
    brightness = np.full(len(many.labels), np.nan)
    brightness[rows] = many.render(32, rows).mean((1, 2))
    for k, positive in enumerate(positives):
        negative = sample[~many.labels[sample, k]]
        present = np.repeat([1, 0], [len(positive), len(negative)])
        auroc = roc_auc_score(present, brightness[np.concatenate([positive, negative])])
        assert 0.30 < auroc < 0.70, FINDINGS[k]


# --- signs and masks

EMPTY = {"Effusion": 0.02}  # share of masks that may be empty at 64 px: a trace of fluid is thinner than a pixel


@pytest.mark.parametrize("name", FINDINGS)
def test_masks_where_labelled(many, name):
    k = FINDINGS.index(name)
    rows = np.concatenate([having(many, name, 80), having(many, name, 20, value=False)])
    masks = many.masks(64, rows)
    area = masks.sum((2, 3))
    assert (area[~many.labels[rows]] == 0).all()
    assert (area[:80, k] == 0).mean() <= EMPTY.get(name, 0)
    assert (area[:80, k] < 0.6 * 64**2).all()  # at most both lungs, not the film
    assert len({mask.tobytes() for mask in masks[:80, k]}) > 75  # each its own


@pytest.mark.parametrize("name", FINDINGS)
def test_masks_agree_between_sizes(many, name):
    """Pooled over images, the mask of 128 px averaged down covers that of 64 px: half a pixel at the rim is a
    third of a thin band."""
    k, rows = FINDINGS.index(name), having(many, name, 40)
    small = many.masks(64, rows)[:, k]
    large = many.masks(128, rows)[:, k].reshape(40, 64, 2, 64, 2).mean((2, 4)) >= 0.5
    overlap = (small & large).sum() / (small | large).sum()
    assert overlap > 0.65, overlap


# share of the film's change that lies in the mask widened by two pixels (the edges are soft). Atelectasis and
# fibrosis also draw the diaphragm up, and the haze of an edema has no border
CONCENTRATED = dict.fromkeys(FINDINGS, 0.8) | {"Atelectasis": 0.15, "Fibrosis": 0.6, "Edema": 0.7}


@pytest.mark.parametrize("name", FINDINGS)
def test_the_film_changes_in_the_mask(many, name):
    """Drawn with and without the finding, all else equal: so every sign is reached, and its mask is where it
    is."""
    k, rows = FINDINGS.index(name), having(many, name, 30)
    change = np.abs(many.render(64, rows).astype(float) - without(many, name).render(64, rows))
    mask = many.masks(64, rows)[:, k]
    wide = np.stack([binary_dilation(m, iterations=2) for m in mask])
    assert change[mask].mean() > 10 * change[~wide].mean()
    # and no larger than the finding; but all of an enlarged heart is marked, and the lung between the lines
    # of a fibrosis
    assert (change[mask] > 2).mean() > (0.4 if name in ("Cardiomegaly", "Fibrosis") else 0.9)
    assert change[wide].sum() > CONCENTRATED[name] * change.sum()
    assert (change.reshape(30, -1).max(1) > 5).all()  # of 255: visible in each


@pytest.mark.parametrize(
    ("name", "sign"),
    [(name, -1 if name in ("Emphysema", "Pneumothorax") else +1) for name in FINDINGS if name != "Hernia"],
)
def test_brighter_or_darker(many, name, sign):
    """Fluid, tissue and scar whiten the film; air darkens it. A hernia does both: air over a fluid level."""
    k, rows = FINDINGS.index(name), having(many, name, 60)
    change = many.render(64, rows).astype(float) - without(many, name).render(64, rows)
    assert sign * change[many.masks(64, rows)[:, k]].mean() > 3


@pytest.mark.parametrize("name", ["Nodule", "Mass", "Pneumothorax", "Effusion", "Consolidation", "Atelectasis"])
def test_both_sides(many, name):
    """One-sided findings are on one side, each about as often, and on the same one in all images of a
    patient."""
    k, rows = FINDINGS.index(name), having(many, name, 100)
    mask = many.masks(64, rows)[:, k]
    right = mask[:, :, 32:].sum((1, 2)) > mask[:, :, :32].sum((1, 2))
    assert 0.3 < right.mean() < 0.7
    for patient in np.unique(many.patients[rows]):
        assert len(set(right[many.patients[rows] == patient])) == 1


# --- anatomy


def cardiothoracic_ratio(phantom, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Widest heart over widest inner chest, in anatomical coordinates; and which films are antero-posterior,
    where the heart is magnified."""
    scene, _ = phantom._scene(rows, 128)

    def width(inside):
        return torch.where(inside, scene.x, -9).amax((1, 2)) - torch.where(inside, scene.x, 9).amin((1, 2))

    ratio = width(scene.heart > 0.5) / width(scene.side_distance > 0)
    return ratio.numpy(), (scene.p["ap"][:, 0, 0] > 0).numpy()


def test_the_heart_is_wider_than_half_the_chest(many):
    """On most films with cardiomegaly, on next to none without; and on every one wider than the same
    patient's would be."""
    rows = having(many, "Cardiomegaly", 80)
    enlarged, _ = cardiothoracic_ratio(many, rows)
    same, _ = cardiothoracic_ratio(without(many, "Cardiomegaly"), rows)
    normal, ap = cardiothoracic_ratio(many, having(many, "Cardiomegaly", 80, value=False))
    assert (enlarged > 0.5).mean() > 0.5
    assert (normal < 0.5).mean() > 0.9
    assert (normal[~ap] < 0.54).all()
    assert (enlarged > 1.08 * same).all()
    assert roc_auc_score([1] * 80 + [0] * 80, np.concatenate([enlarged, normal])) > 0.85


def test_emphysema_flattens_the_diaphragm(many):
    rows = having(many, "Emphysema", 60)
    with_it, _ = many._scene(rows, 64)
    not_it, _ = without(many, "Emphysema")._scene(rows, 64)
    dome = [scene.y + scene.dome_distance for scene in (with_it, not_it)]  # the height of the diaphragm
    sag = [(d.amax((1, 2)) - d.amin((1, 2))) for d in dome]
    assert (sag[0] < sag[1]).all()
    assert (with_it.lung.sum((1, 2)) > not_it.lung.sum((1, 2))).all()


def test_one_sign_a_finding():
    assert tuple(SIGNS) == FINDINGS
    assert len(set(SIGNS.values())) == 14
