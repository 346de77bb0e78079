"""Patients never cross splits, every image is in one, findings are spread; for tables of any shape."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deepchest_utils.datasets import ChestXrays, DataError, DataWarning, Splits
from deepchest_utils.datasets.base import FRACTIONS, fold_of, fold_split, image_split, limit_images, patient_split


@st.composite
def tables(draw):
    """Labels (with NaN) and patients of 4 to 80 images: patients of any number, in any order, of very unequal
    size, findings absent, rare or everywhere."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, k = draw(st.integers(4, 80)), draw(st.integers(0, 6))
    num_patients = draw(st.integers(4, n))
    weights = rng.dirichlet(np.full(num_patients, draw(st.sampled_from([0.1, 1.0, 100.0]))))
    patients = np.concatenate([np.arange(num_patients), rng.choice(num_patients, n - num_patients, p=weights)])
    numbers = rng.choice([-5, 0, 7, 10**12], 1) + rng.permutation(num_patients) * 3
    labels = (rng.random((n, k)) < rng.choice([0, 0.02, 0.3, 1], k)).astype(np.float32)
    labels[rng.random((n, k)) < draw(st.sampled_from([0.0, 0.3]))] = np.nan
    return labels, numbers[rng.permutation(patients)].astype(np.int64)


fractions = st.lists(st.floats(0.05, 10), min_size=2, max_size=4).map(tuple)


@given(tables(), fractions, st.integers(0, 1000))
def test_laws_of_a_split_by_patient(table, fractions, seed):
    labels, patients = table
    number = patient_split(labels, patients, fractions, seed)
    assert number.shape == patients.shape
    assert set(number) <= set(range(len(fractions)))
    for patient in np.unique(patients):
        assert len(set(number[patients == patient])) == 1
    np.testing.assert_array_equal(number, patient_split(labels, patients, fractions, seed))
    # only the ratio of the fractions counts, and NaN counts as absent
    np.testing.assert_array_equal(
        number, patient_split(np.nan_to_num(labels), patients, tuple(2 * f for f in fractions), seed)
    )


@given(tables(), fractions)
def test_fractions_are_met_as_well_as_patients_allow(table, fractions):
    """Without findings, a split is over its share by less than the largest patient."""
    _, patients = table
    number = patient_split(np.zeros((len(patients), 0), np.float32), patients, fractions, seed=0)
    share = np.bincount(number, minlength=len(fractions))
    wanted = np.array(fractions) / sum(fractions) * len(patients)
    largest = np.unique(patients, return_counts=True)[1].max()
    assert (share - wanted <= largest + 1e-6).all()


@pytest.fixture(scope="module")
def cohort():
    """8,000 images of about 2,400 patients; findings in 20, 5, 1 and 0.5 % of the patients, which all their
    images share."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(8000), rng.geometric(0.3, 8000))[:8000]
    has = rng.random((8000, 4)) < [0.2, 0.05, 0.01, 0.005]
    return has[patients].astype(np.float32), patients.astype(np.int64)


def test_sizes_and_stratification(cohort):
    labels, patients = cohort
    number = patient_split(labels, patients, seed=0)
    share = np.bincount(number) / len(number)
    np.testing.assert_allclose(share, FRACTIONS, atol=0.01)
    totals = labels.sum(0)
    for split, fraction in enumerate(FRACTIONS):
        positives = labels[number == split].sum(0)
        assert (positives > 0).all()  # the rarest finding has about 12 patients
        common = totals > 100
        np.testing.assert_allclose(positives[common] / totals[common], fraction, atol=0.03)


def test_stratification_is_better_than_chance_for_rare_findings(cohort):
    labels, patients = cohort

    def error(number):
        """How far the shares of the rarest two findings' images are from the fractions."""
        counts = np.stack([labels[number == i][:, 2:].sum(0) for i in range(3)])
        return np.abs(counts / counts.sum(0) - np.array(FRACTIONS)[:, None]).mean()

    ours = np.mean([error(patient_split(labels, patients, seed=seed)) for seed in range(10)])
    nobody = np.zeros((len(labels), 0), np.float32)
    chance = np.mean([error(patient_split(nobody, patients, seed=seed)) for seed in range(10)])
    assert ours < 0.5 * chance


def test_other_seed_other_split(cohort):
    first, second = (patient_split(*cohort, seed=seed) for seed in (0, 1))
    assert 0.2 < (first != second).mean() < 0.8  # 0.46 if the two were independent


def test_names_of_patients_do_not_matter(cohort):
    labels, patients = cohort
    first = patient_split(labels, patients, seed=0)
    np.testing.assert_array_equal(first, patient_split(labels, patients * 7 + 1000, seed=0))


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_patients(count):
    patients = np.arange(6) % count
    with pytest.raises(ValueError, match=f"needs at least 3 patients. Found {count}"):
        patient_split(np.zeros((6, 2), np.float32), patients)


# --- by image, and fewer of them


@given(st.integers(3, 500), st.integers(0, 100))
def test_split_by_image(n, seed):
    number = image_split(n, seed=seed)
    np.testing.assert_array_equal(number, image_split(n, seed=seed))
    np.testing.assert_allclose(np.bincount(number, minlength=3), np.array(FRACTIONS) * n, atol=1)
    np.testing.assert_array_equal(np.bincount(image_split(10, (5, 2, 3), seed)), [5, 2, 3])


@given(tables(), st.integers(1, 100), st.integers(0, 100))
def test_limit_keeps_whole_patients(table, max_images, seed):
    _, patients = table
    rows = limit_images(patients, max_images, seed)
    assert (np.diff(rows) > 0).all()
    kept = set(patients[rows])
    assert np.isin(patients, list(kept)).sum() == len(rows)
    assert len(rows) <= max_images or len(kept) == 1
    assert len(rows) == len(patients) if max_images >= len(patients) else len(rows) > 0


def test_limit():
    patients = np.repeat(np.arange(100), 3)
    assert len(limit_images(patients, None)) == 300
    assert len(limit_images(patients, 31)) == 30
    first, second = (limit_images(patients, 31, seed) for seed in (0, 1))
    assert set(first) != set(second)
    with pytest.raises(ValueError, match=r"max_images should be at least 1. Found 0"):
        limit_images(patients, 0)


# --- what every data set must be in the end


def part(patients, labels=None, name="p") -> ChestXrays:
    n = len(patients)
    if labels is None:  # both findings, and none
        return part([*patients, *patients], [[1, 1]] * n + [[0, 0]] * n, name)
    labels = np.asarray(labels, np.float32)
    ids = np.array([f"{name}{i}" for i in range(n)])
    return ChestXrays(np.zeros((n, 4, 4), np.uint8), labels, np.asarray(patients), ("A", "B"), ids)


def test_a_patient_in_two_splits_is_refused():
    with pytest.raises(DataError, match=r"^films\.csv: .*1 of them in train and test, e\.g\. that of a2 and b0\. Mend"):
        Splits(part([1, 2, 3], name="a"), part([4]), part([3, 5], name="b"), "made", "patient", source="films.csv")
    with pytest.raises(DataError, match=r"^made: .*val and test"):
        Splits(part([1]), part([4]), part([4]), name="made", split="official")
    assert Splits(part([1]), part([1]), part([1]), name="made", split="image").findings == ("A", "B")


def test_finding_without_a_positive_warns_by_name():
    none = part([2], [[0, 1]])
    with pytest.warns(DataWarning, match=r"made: findings without a positive .*NaN: val: A, B \(no negative\)\.$"):
        Splits(part([1]), none, part([3]), name="made", split="patient")
    unknown = part([2], [[np.nan, np.nan]])
    with pytest.warns(DataWarning, match=r"test: A, B\.$"):
        Splits(part([1]), part([3]), unknown, name="made", split="patient")


@pytest.mark.parametrize("wrong", [2, -1, 0.5, np.inf])
def test_other_labels_are_refused(wrong):
    with pytest.raises(DataError, match=r"labels should be 0, 1 or NaN. Found .* for B of image p1"):
        part([1, 2], [[0, 1], [np.nan, wrong]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": np.array(["a"])}, "one length. Found .*'ids': 1"),
        ({"findings": ("A",)}, r"one column a finding \(1\). Found 2"),
        (
            {
                "images": np.zeros((0, 4, 4), np.uint8),
                "labels": np.zeros((0, 2), np.float32),
                "patients": np.zeros(0, np.int64),
                "ids": np.zeros(0, str),
            },
            "at least one image",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    good = part([1, 2])
    fields = {name: getattr(good, name) for name in ("images", "labels", "patients", "findings", "ids")}
    with pytest.raises(DataError, match=message):
        ChestXrays(**fields | change)


def test_subset_is_of_the_same_rows():
    data = part([5, 6, 7], [[0, 1], [1, 0], [1, 1]])
    chosen = data.subset(np.array([2, 0]))
    assert (chosen.patients.tolist(), chosen.ids.tolist()) == ([7, 5], ["p2", "p0"])
    np.testing.assert_array_equal(chosen.labels, [[1, 1], [0, 1]])


# cross-validation


@given(tables(), st.integers(3, 6), st.integers(0, 100))
def test_laws_of_folds(table, folds, seed):
    """Every image is in test once and in val once, with all of its patient's."""
    labels, patients = table
    assume(len(np.unique(patients)) >= folds)
    splits = np.array([fold_split(labels, patients, fold, folds, seed) for fold in range(1, folds + 1)])
    for part in (1, 2):
        assert ((splits == part).sum(0) == 1).all()
    for patient in np.unique(patients):
        assert len(np.unique(splits[:, patients == patient], axis=1).T) == 1
    assert (splits[0] == 1).tolist() == (splits[1] == 2).tolist()  # val of one is test of the next


def test_folds_have_findings_in_equal_shares_and_depend_on_the_seed(cohort):
    labels, patients = cohort
    first, other = (fold_split(labels, patients, 2, 5, seed) for seed in (0, 1))
    assert (first != other).any()
    for part, share in ((0, 0.6), (1, 0.2), (2, 0.2)):
        shares = labels[first == part].sum(0) / labels.sum(0)
        np.testing.assert_allclose(shares[:3], share, atol=0.03)
        assert shares[3] > 0  # some ten patients


@pytest.mark.parametrize(("split", "found"), [("2/5", (2, 5)), ("3/3", (3, 3)), ("image", None), ("official", None)])
def test_a_fold_is_written_as_a_share(split, found):
    assert fold_of(split) == found


@pytest.mark.parametrize("split", ["0/5", "6/5", "1/2", "2/5 ", "-1/5", "fold", "1/0"])
def test_what_is_no_fold(split):
    with pytest.raises(DataError, match="split should be"):
        fold_of(split)
