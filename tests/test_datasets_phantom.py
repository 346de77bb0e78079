"""The phantom as a data set: noise, unknown labels and splits are what their options say."""

import hashlib

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from deepchest_utils import FINDINGS, DataError, TrainConfig, load_dataset, train
from deepchest_utils.datasets.phantom import load as phantom_load
from deepchest_utils.datasets.phantom.load import phantom_of
from deepchest_utils.paths import PROJECT

pytestmark = pytest.mark.filterwarnings("ignore:phantom. findings without a positive")  # Hernia, in so few


def load(**options):
    """1,500, 40 and 60 images of 28 px: enough labels to count, quick to draw and then cached."""
    return load_dataset("phantom", **{"image_size": 28, "num_train": 1500, "num_val": 40, "num_test": 60} | options)


def test_shapes_and_types(splits):
    for part, count in (("train", 300), ("val", 120), ("test", 200)):
        data = getattr(splits, part)
        assert len(data) == count
        assert (data.images.shape, data.images.dtype) == ((count, 64, 64), np.uint8)
        assert (data.labels.shape, data.labels.dtype) == ((count, 14), np.float32)
        assert (data.patients.shape, data.patients.dtype) == ((count,), np.int64)
    assert splits.split == "patient"


def test_images_and_masks_are_of_the_population_behind(splits):
    behind = phantom_of(0, "test", 200)
    np.testing.assert_array_equal(splits.test.labels, behind.labels)
    rows = np.array([0, 17, 199])
    np.testing.assert_array_equal(splits.test.images[rows], behind.render(64, rows))


def test_patients_are_disjoint(splits):
    patients = [set(part.patients) for part in splits.parts.values()]
    assert sum(map(len, patients)) == len(set.union(*patients))
    for part in splits.parts.values():
        assert len(set(part.patients)) < len(part)  # several images a patient


def test_no_film_is_in_two_splits(splits):
    films = [image.tobytes() for part in splits.parts.values() for image in part.images]
    assert len(set(films)) == len(films)


def test_seed():
    first, again, other = load(seed=0), load(seed=0), load(seed=1)
    np.testing.assert_array_equal(first.train.images, again.train.images)
    assert (first.test.labels != other.test.labels).any()
    assert (first.train.images != other.train.images).mean() > 0.9


@pytest.mark.parametrize("options", [{}, {"unknown": 0.3, "label_noise": 0.5}])
def test_the_test_split_does_not_depend_on_train(options):
    small, large = load(num_train=200, **options).test, load(**options).test
    np.testing.assert_array_equal(small.images, large.images)
    np.testing.assert_array_equal(small.labels, large.labels)


def test_films_are_drawn_again_when_the_code_changes(tmp_path, monkeypatch):
    """The name of what is cached covers the code that draws, the seed, the numbers, the size and the population."""
    (tmp_path / "draw.py").write_text("radius = 1")
    monkeypatch.setattr(phantom_load, "DRAWING_CODE", [tmp_path / "draw.py"])
    few = {"num_train": 40, "cache_dir": tmp_path / "cache"}

    def kept() -> int:
        return len(list((tmp_path / "cache").iterdir()))

    for again in (False, True):
        load(**few)
        assert kept() == 3, again
    load(**few, label_noise=0.5)
    assert kept() == 3
    (tmp_path / "draw.py").write_text("radius = 2")
    load(**few)
    assert kept() == 6
    load(**few, seed=1)
    assert kept() == 9
    for controlled in ({}, {"visibility": {"Mass": 0.5}}):
        load(**few, controlled=controlled)
    assert kept() == 15


# --- label noise and unknown labels


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_label_noise(share):
    """Label vectors move between images as a whole, so that prevalence and co-occurrence stay; test stays
    clean."""
    clean, noisy = load(), load(label_noise=share)
    np.testing.assert_array_equal(clean.test.labels, noisy.test.labels)
    a, b = clean.train.labels, noisy.train.labels
    np.testing.assert_array_equal(a.T @ a, b.T @ b)
    np.testing.assert_array_equal(clean.train.images, noisy.train.images)
    # two strangers' labels differ with probability d; so often should the share's. 4 standard errors of a
    # binomial
    i, j = np.random.default_rng(0).integers(0, len(a), (2, 20_000))
    d = (a[i] != a[j]).any(1).mean()
    changed = (a != b).any(1).mean()
    assert abs(changed - share * d) < 4 * np.sqrt(share * d * (1 - share * d) / len(a)) + 0.01


def test_noise_tells_nothing_of_the_truth_at_share_one():
    """A patient's next image has the same findings: labels taken from there would be hardly noise."""
    a, b = load().train.labels, load(label_noise=1.0).train.labels
    for k in np.flatnonzero(a.mean(0) > 0.03):
        assert abs(np.corrcoef(a[:, k], b[:, k])[0, 1]) < 0.12  # 4 standard errors with 1,500 images


# --- one factor at a time


def test_controlled_findings_are_alike_and_independent_where_nothing_is_named():
    labels = load(controlled={}, num_train=6000).train.labels
    error = np.sqrt(0.1 * 0.9 / len(labels) * 3)  # images of a patient go together
    np.testing.assert_allclose(labels.mean(0), 0.1, atol=4 * error)
    pairs = np.corrcoef(labels.T)[np.triu_indices(14, 1)]
    assert abs(pairs.mean()) < 0.01
    assert abs(pairs).max() < 0.1


def test_controlled_prevalence_and_loading_do_what_they_say():
    rare, alike = ["Mass", "Edema"], ["Nodule", "Fibrosis", "Hernia"]
    factors = {"prevalence": dict.fromkeys(rare, 0.02), "loading": dict.fromkeys(alike, 0.9)}
    part = load(controlled=factors, num_train=6000).train
    at = {name: k for k, name in enumerate(FINDINGS)}
    shares = part.labels.mean(0)
    assert all(0.01 < shares[at[name]] < 0.03 for name in rare)
    assert all(0.07 < shares[at[name]] < 0.13 for name in FINDINGS if name not in rare)
    correlation = np.corrcoef(part.labels.T)
    assert all(correlation[at[a], at[b]] > 0.4 for a in alike for b in alike)
    assert all(abs(correlation[at["Mass"], at[b]]) < 0.1 for b in alike)


def test_controlled_visibility_fades_the_sign_alone():
    usual, faded = (load(controlled={"visibility": {"Mass": v, "Cardiomegaly": v}}).train for v in (1.0, 0.0))
    np.testing.assert_array_equal(usual.labels, faded.labels)
    touched = usual.labels[:, [FINDINGS.index("Mass"), FINDINGS.index("Cardiomegaly")]].any(1)
    changed = (usual.images != faded.images).any((1, 2))
    assert not changed[~touched].any()
    assert changed[touched].mean() > 0.95


def test_controlled_label_noise_is_of_one_finding_and_keeps_its_prevalence():
    clean, noisy = load(controlled={}), load(controlled={"label_noise": {"Mass": 0.5}})
    k = FINDINGS.index("Mass")
    for name in ("train", "val", "test"):
        a, b = clean.parts[name].labels, noisy.parts[name].labels
        np.testing.assert_array_equal(np.delete(a, k, 1), np.delete(b, k, 1))
        assert a[:, k].sum() == b[:, k].sum()
        assert (a[:, k] != b[:, k]).any() == (name != "test")


@pytest.mark.parametrize(
    ("controlled", "named"),
    [
        ({"contrast": {}}, "controlled.*visibility.*'contrast'"),
        ({"visibility": {"Tumour": 0.5}}, "'visibility'.*'Tumour'"),
        ({"prevalence": {"Mass": 0.0}}, "'prevalence'.*between 0.001 and 0.999.*Mass"),
        ({"loading": {"Mass": 1.5}}, "'loading'.*between 0.0 and 1.0.*1.5"),
    ],
)
def test_controlled_factors_are_checked(controlled, named):
    with pytest.raises(DataError, match=named):
        load(controlled=controlled)


def test_the_fingerprint_knows_how_visible_signs_are():
    """Labels do not say it. What was drawn without it has the fingerprint that it always had."""
    faint, strong = (load(controlled={"visibility": {"Mass": v}}) for v in (0.2, 3.0))
    np.testing.assert_array_equal(faint.train.labels, strong.train.labels)
    assert (faint.test.images != strong.test.images).any()
    assert faint.fingerprint() != strong.fingerprint()
    assert load(controlled={}).fingerprint() == load(controlled={"visibility": {}}).fingerprint() == "e0b786b4758a2ca0"
    assert load().fingerprint() == "6e14b72ec084e9c4"


# --- the difficulty of real radiographs


def test_difficulty_fades_signs_and_falsifies_labels_finding_by_finding():
    """Who has what stays; each finding has the visibility and the share of wrong labels of its row."""
    usual, hard = load(num_train=6000), load(num_train=6000, difficulty="nih")
    visibility, noises = phantom_load.DIFFICULTIES["nih"]
    behind = phantom_of(0, "train", 6000, difficulty="nih")
    assert behind.visibility.tolist() == [*visibility]
    np.testing.assert_array_equal(hard.train.images[:20], behind.render(28, np.arange(20)))
    np.testing.assert_array_equal(usual.test.labels, hard.test.labels)  # clean
    for k, (name, noise) in enumerate(zip(FINDINGS, noises, strict=True)):
        a, b = usual.train.labels[:, k], hard.train.labels[:, k]
        assert a.sum() == b.sum()
        # one of the noise's images has another label as often as two strangers differ
        expected = float(noise * 2 * a.mean() * (1 - a.mean()))
        assert (a != b).mean() == pytest.approx(expected, abs=4 * np.sqrt(expected / len(a)) + 1e-9), name
    normal = ~usual.test.labels.any(1)
    np.testing.assert_array_equal(usual.test.images[normal], hard.test.images[normal])
    assert (usual.test.images != hard.test.images).any()


def test_difficulty_leaves_the_usual_phantom_alone():
    assert load(difficulty=None).fingerprint() == load().fingerprint()
    assert load(difficulty="nih").fingerprint() == "95995bb5a39cbe8a"
    values = np.array(phantom_load.DIFFICULTIES["nih"])  # visibilities are no part of the fingerprint
    assert (
        hashlib.sha256(values.tobytes()).hexdigest()[:16] == "e4cb95d1c6ea92f8"
    )  # others have not been held against real radiographs


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"difficulty": "nhi"}, "difficulty should be one of nih. Found 'nhi'. Did you mean 'nih'"),
        ({"difficulty": "nih", "controlled": {}}, "difficulty 'nih'.*controlled"),
    ],
)
def test_difficulty_is_checked(options, named):
    with pytest.raises(DataError, match=named):
        load(**options)


# fmt: off
PUBLISHED_AUROC = np.array([  # (3, 14) on NIH ChestX-ray14, as CheXNet's table 2 lists them (arXiv 1711.05225)
    [0.716, 0.807, 0.784, 0.609, 0.706, 0.671, 0.633, 0.806, 0.708, 0.835, 0.815, 0.769, 0.708, 0.767],  # Wang 2017
    [0.772, 0.904, 0.859, 0.695, 0.792, 0.717, 0.713, 0.841, 0.788, 0.882, 0.829, 0.767, 0.765, 0.914],  # Yao 2017
    [0.8094, 0.9248, 0.8638, 0.7345, 0.8676, 0.7802, 0.7680, 0.8887, 0.7901, 0.8878, 0.9371, 0.8047, 0.8062, 0.9164],
])
# fmt: on


def order_of_published(auroc: pd.Series) -> float:
    """Rank correlation with the mean of three published results on NIH ChestX-ray14."""
    return spearmanr(auroc[list(FINDINGS)], PUBLISHED_AUROC.mean(0)).statistic


def test_the_usual_phantom_has_another_order_of_difficulty():
    table = pd.read_csv(PROJECT / "data" / "results" / "phantom.csv").query(
        "method == 'equal' and metric == 'auroc' and split == 'test'"
    )
    assert order_of_published(table.groupby("task").value.mean()) < 0.3


@pytest.mark.slow
def test_difficulty_is_that_of_real_radiographs():
    """Equal weighting on a draw that was not used to set it. After 48 epochs six such draws together have 0.90."""
    options = {"num_train": 4000, "num_val": 2000, "num_test": 8000, "difficulty": "nih"}
    common = {"image_size": 32, "augment": False, "data_options": options, "device": "cpu", "min_positives": 10}
    config = TrainConfig(method="equal", lr=4e-3, weight_decay=0.5, epochs=16, seed=9211, data_seed=9211, **common)
    score = train(config).test.query("metric == 'auroc'").set_index("task").value
    assert order_of_published(score) >= 0.6
    assert score[list(FINDINGS)].mean() == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_unknown(share):
    clean, masked = load(), load(unknown=share)
    for name, part in masked.parts.items():
        unknown = np.isnan(part.labels)
        assert abs(unknown.mean() - share) <= 4 * np.sqrt(share * (1 - share) / unknown.size)
        np.testing.assert_array_equal(part.labels[~unknown], clean.parts[name].labels[~unknown])


def test_unknown_labels_are_counted():
    data = load(unknown=0.25)
    table = data.summary()
    for name, part in data.parts.items():
        assert table.loc["(images)", (name, "positive")] == len(part)
        assert table.loc["(patients)", (name, "positive")] == len(set(part.patients.tolist()))
        np.testing.assert_array_equal(table[name, "unknown"].iloc[2:], np.isnan(part.labels).sum(0))
        np.testing.assert_array_equal(table[name, "positive"].iloc[2:], (part.labels == 1).sum(0))
        known = (~np.isnan(part.labels)).sum(0)
        np.testing.assert_allclose(part.prevalence, (part.labels == 1).sum(0) / known)


# --- other splits, fewer images


def test_split_by_image_leaks_patients():
    """All images of the three splits, dealt out one by one: most test patients are in train as well."""
    leaky, clean = load(split="image", num_test=500), load(num_test=500)
    assert [len(part) for part in leaky.parts.values()] == [1500, 40, 500]
    ids = np.concatenate([part.ids for part in leaky.parts.values()])
    assert sorted(ids) == sorted(np.concatenate([part.ids for part in clean.parts.values()]))
    assert np.isin(leaky.test.patients, leaky.train.patients).mean() > 0.7
    # and each image keeps its own labels and patient
    order = {name: i for i, name in enumerate(clean.train.ids)}
    rows = [i for i, name in enumerate(leaky.train.ids) if name in order]
    theirs = [order[leaky.train.ids[i]] for i in rows]
    np.testing.assert_array_equal(leaky.train.labels[rows], clean.train.labels[theirs])
    np.testing.assert_array_equal(leaky.train.images[rows], clean.train.images[theirs])
    np.testing.assert_array_equal(leaky.train.patients[rows], clean.train.patients[theirs])


def test_max_images():
    assert [len(part) for part in load(max_images=50).parts.values()] == [50, 40, 50]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_noise": -0.1}, "label_noise should be a share between 0 and 1. Found -0.1"),
        ({"unknown": 1.5}, "unknown should be a share between 0 and 1. Found 1.5"),
        ({"unknown": float("nan")}, "unknown should be a finite number. Found nan"),
        ({"image_size": 27}, "between 28 and 256 px for the phantom. Found 27"),
        ({"image_size": 512}, "Found 512"),
        ({"image_size": 8}, "image_size should be at least 16"),
        ({"split": "official"}, "split should be .* Found 'official'"),
        ({"num_train": 0}, "num_train should be at least 1 and .* Found 0"),
        ({"num_test": -1}, "num_test should be at least 1 and .* Found -1"),
        ({"seed": -1}, "seed should be non-negative. Found -1"),
        (
            {"num_trian": 5},
            "'num_trian' is no option of dataset 'phantom'. It has .*num_train.* Did you mean 'num_train'",
        ),
        ({"download": True}, "'download' is no option"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(DataError, match=message):
        load(**options)


def test_unknown_data_set():
    with pytest.raises(DataError, match=r"one of phantom, nih, .*csv.*\. Found 'openi'\.$"):
        load_dataset("openi")
    with pytest.raises(DataError, match=r"Found 'fantom'\. Did you mean 'phantom'\?"):
        load_dataset("fantom")
