"""Where a network looks (`cam`), the true regions (`regions`), whether both agree (`scores`); one image (`predict`)."""

from deepchest_utils.explain.cam import CAM_METHODS, HeatMaps, default_layers, heat_maps
from deepchest_utils.explain.regions import Regions, load_regions
from deepchest_utils.explain.scores import SCORES, localize, mean_scores, score_maps

__all__ = [
    "CAM_METHODS", "SCORES", "HeatMaps", "Regions", "default_layers", "heat_maps", "load_regions",
    "localize", "mean_scores", "score_maps",
]  # fmt: skip
