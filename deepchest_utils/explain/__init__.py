"""Where a network looks, and whether that is right.

`cam` makes heat maps, `regions` knows the true regions of findings, `scores` compares the two, and `predict` reads one image
file of the user's own.
"""

from deepchest_utils.explain.cam import CAM_METHODS, HeatMaps, default_layers, heat_maps
from deepchest_utils.explain.regions import Regions, load_regions
from deepchest_utils.explain.scores import (
    SCORES,
    centre_prior,
    localize,
    mean_region_baseline,
    mean_scores,
    random_maps,
    score_baseline_maps,
    score_maps,
)

__all__ = [
    "CAM_METHODS", "SCORES", "HeatMaps", "Regions", "centre_prior", "default_layers", "heat_maps", "load_regions",
    "localize", "mean_region_baseline", "mean_scores", "random_maps", "score_baseline_maps", "score_maps",
]  # fmt: skip
