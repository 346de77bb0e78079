"""Where a network looks (`cam`), the true regions (`regions`), and one image of the user's own (`predict`)."""

from deepchest_utils.explain.cam import CAM_METHODS, HeatMaps, default_layers, heat_maps
from deepchest_utils.explain.regions import Regions, load_regions

__all__ = ["CAM_METHODS", "HeatMaps", "Regions", "default_layers", "heat_maps", "load_regions"]
