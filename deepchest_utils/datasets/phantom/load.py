"""The phantom as a data set: three populations with patients of their own, drawn once and cached."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from deepchest_utils.config import check_choice, check_type, did_you_mean
from deepchest_utils.datasets.base import ChestXrays, DataError, Splits, image_split
from deepchest_utils.datasets.cache import Blocks, cache_key, cached_images
from deepchest_utils.datasets.findings import FINDINGS
from deepchest_utils.datasets.phantom import MAX_SIZE, Phantom, make_phantom
from deepchest_utils.progress import progress

SIZES = {"train": 6000, "val": 2000, "test": 8000}
FACTORS = {  # of a controlled population: value of a finding that is not named, smallest, largest
    "prevalence": (0.1, 0.001, 0.999),  # a finding that nobody or everybody has cannot be learned
    "visibility": (1.0, 0.0, 3.0),  # contrast of the sign
    "loading": (0.0, 0.0, 1.0),  # the correlation of two findings is the product of theirs
    "label_noise": (0.0, 0.0, 1.0),  # share of the images of train and val that get the label of another of them
}
# fmt: off
DIFFICULTIES = {  # visibility and label noise of the 14 findings
    "nih": (  # so that AUROCs of equal weighting are ordered as three published ones, see the tests
        (0.85, 0.85, 0.45, 0.65, 0.7, 1.5, 0.5, 1.4, 0.42, 0.6, 0.52, 1.05, 1.35, 2.5),
        (0.2, 0.0, 0.1, 0.4, 0.1, 0.2, 0.4, 0.1, 0.3, 0.1, 0.0, 0.2, 0.2, 0.0),
    ),
}
# fmt: on
DRAWING_CODE = [Path(__file__).with_name(f"{name}.py") for name in ("population", "anatomy", "signs", "__init__")]
MAX_IMAGES = 10**7  # a split
BLOCK = 1024  # images drawn between two steps of the progress bar
Controlled = dict[str, dict[str, float]]  # factor -> finding -> value


def phantom_of(
    seed: int, split: str, num_images: int, controlled: Controlled | None = None, difficulty: str | None = None
) -> Phantom:
    """The population behind one split of `load_phantom`; its `masks(64, rows)` are those of the split's images."""
    values_of = _factor_values(controlled, difficulty)
    factors = {name: values for name, values in values_of.items() if name != "label_noise"}
    return make_phantom(num_images, 3 * seed + list(SIZES).index(split), **factors)


def _factor_values(controlled: Controlled | None, difficulty: str | None) -> dict[str, Float[np.ndarray, " k"]]:
    """Each factor's value for each finding; of NIH's population visibility and label noise alone, if they are given."""
    if difficulty is not None:
        check_choice("difficulty", difficulty, DIFFICULTIES, DataError)
        if controlled is not None:
            raise DataError(
                f"difficulty {difficulty!r} goes with NIH's population. Found controlled as well: leave one out."
            )
        visibility, noise = DIFFICULTIES[difficulty]
        return {"visibility": np.array(visibility), "label_noise": np.array(noise)}
    if controlled is None:
        return {}
    check_type("controlled", dict, controlled, DataError)
    if unknown := sorted(set(controlled) - set(FACTORS), key=str):
        message = f"controlled should have factors among {', '.join(FACTORS)}. Found {unknown[0]!r}."
        raise DataError(message + did_you_mean(unknown[0], FACTORS))
    factors = {}
    for factor, (default, low, high) in FACTORS.items():
        named = check_type(f"controlled {factor!r}", dict, controlled.get(factor, {}), DataError)
        if unknown := sorted(set(named) - set(FINDINGS), key=str):
            message = f"controlled {factor!r} should name findings. Found {unknown[0]!r}."
            raise DataError(message + did_you_mean(unknown[0], FINDINGS))
        of = f"controlled {factor!r} of"
        values = np.array([check_type(f"{of} {f}", float, named.get(f, default), DataError) for f in FINDINGS])
        if not ((values >= low) & (values <= high)).all():
            raise DataError(f"controlled {factor!r} should be between {low} and {high}. Found {named}.")
        factors[factor] = values
    return factors


def load_phantom(
    image_size: int = 64,
    seed: int = 0,
    split: str | None = None,
    num_train: int = SIZES["train"],
    num_val: int = SIZES["val"],
    num_test: int = SIZES["test"],
    label_noise: float = 0.0,
    unknown: float = 0.0,
    max_images: int | None = None,
    controlled: Controlled | None = None,
    difficulty: str | None = None,
    cache_dir: str | Path | None = None,
) -> Splits:
    """Draw three splits, or take them from the cache. The test split does not depend on `num_train`.

    Args:
        split: "patient" (default), or "image", which pools all images and deals them out one by one.
        label_noise: Share of the images of train and val that get the labels of another of them.
        unknown: Share of all labels made NaN.
        controlled: A population whose findings differ in nothing but these values of `FACTORS`.
        difficulty: "nih": signs as hard to see, and labels as often wrong, as to give real radiographs' order of AUROCs.
    Raises DataError: A share outside [0, 1], a size outside 28 to 256 px, an unknown split, factor or finding.
    """
    for name, share in (("label_noise", label_noise), ("unknown", unknown)):
        if not 0 <= share <= 1:
            raise DataError(f"{name} should be a share between 0 and 1. Found {share}.")
    if not 28 <= image_size <= MAX_SIZE:
        raise DataError(f"image_size should be between 28 and {MAX_SIZE} px for the phantom. Found {image_size}.")
    if split not in (None, "patient", "image"):
        raise DataError(f'split should be "patient" or "image" for the phantom. Found {split!r}.')
    factors = _factor_values(controlled, difficulty)
    noise: list[tuple[int | slice, float]] = [(slice(None), label_noise)] if label_noise else []
    noise += enumerate(factors.pop("label_noise", ()))
    parts, first_patient = {}, 0
    for i, (name, count) in enumerate({"train": num_train, "val": num_val, "test": num_test}.items()):
        if not 1 <= count <= MAX_IMAGES:
            raise DataError(f"num_{name} should be at least 1 and at most {MAX_IMAGES}. Found {count}.")
        count = count if max_images is None else min(count, max_images)
        phantom = make_phantom(count, 3 * seed + i, **factors)  # as in `phantom_of`
        images = _cached_films(phantom, name, image_size, factors, cache_dir)
        ids = np.array([f"{name}/{row}" for row in range(len(images))])
        patients = phantom.patients + first_patient
        parts[name] = ChestXrays(images, phantom.labels.astype(np.float32), patients, FINDINGS, ids)
        first_patient = int(patients[-1]) + 1
    if split == "image":  # all images, dealt out one by one into splits of the same sizes
        fields = ("images", "labels", "patients", "ids")
        pooled = {name: np.concatenate([getattr(xrays, name) for xrays in parts.values()]) for name in fields}
        split_of = image_split(len(pooled["ids"]), tuple(map(len, parts.values())), seed)
        xrays = ChestXrays(**pooled, findings=FINDINGS)
        parts = {name: xrays.subset(np.flatnonzero(split_of == i)) for i, name in enumerate(parts)}
    for i, (name, xrays) in enumerate(parts.items()):
        rng = np.random.default_rng([seed, 1, i])  # one a split: test does not depend on the size of train
        labels = xrays.labels.copy()
        for columns, share in noise if name != "test" else ():
            rows = rng.permutation(np.flatnonzero(rng.random(len(labels)) < share))
            # a cycle through them in random order (neighbours show one patient): none keeps its own label
            labels[rows, columns] = labels[np.roll(rows, 1), columns]
        labels[rng.random(labels.shape) < unknown] = np.nan
        parts[name] = replace(xrays, labels=labels)
    population = {"controlled": controlled, "difficulty": difficulty}
    return Splits(parts["train"], parts["val"], parts["test"], "phantom", split or "patient", population=population)


def _cached_films(
    phantom: Phantom, name: str, size: int, factors: dict[str, np.ndarray], cache_dir: str | Path | None
) -> np.ndarray:
    code, count = [path.read_bytes() for path in DRAWING_CODE], len(phantom.labels)
    population = {factor: values.tolist() for factor, values in factors.items()}
    key = cache_key(code=code, seed=phantom.seed, count=count, size=size, population=population)

    def make() -> Blocks:
        for start in progress(range(0, count, BLOCK), f"drawing phantom {name}", logged=True):
            yield start, phantom.render(size, np.arange(start, min(start + BLOCK, count)))

    return cached_images(f"phantom-{size}", key, (count, size, size), make, cache_dir)
