"""Where the network looks, and whether that is right: heat maps (`cam`), the regions that findings really have
(`truth`), scores of one against the other (`scores`), sanity checks (`checks`), many runs compared (`study`), and one
image file of the user's own (`predict`)."""

from deepchest_utils.explain.cam import CAM_METHODS, HeatMaps, default_layers, heat_maps
from deepchest_utils.explain.checks import cascade, perturbation_curves, shuffle_labels
from deepchest_utils.explain.scores import (
    SCORES,
    centre_prior,
    localize,
    mean_scores,
    random_maps,
    score_blind_maps,
    score_maps,
    usual_place,
)
from deepchest_utils.explain.truth import Truth, find_truth

__all__ = [
    "CAM_METHODS",
    "SCORES",
    "HeatMaps",
    "Truth",
    "cascade",
    "centre_prior",
    "default_layers",
    "find_truth",
    "heat_maps",
    "localize",
    "mean_scores",
    "perturbation_curves",
    "random_maps",
    "score_blind_maps",
    "score_maps",
    "shuffle_labels",
    "usual_place",
]
