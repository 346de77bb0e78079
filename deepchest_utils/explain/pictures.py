"""Heat maps to look at: over the radiograph, with the outline of the truth, in colours that everyone can tell apart."""

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes

from deepchest_utils.labels import SKY
from deepchest_utils.plotting import show_radiograph

# from nothing to orange: what is not hot shows the radiograph as it is; blue is left for the truth
HEAT = mpl.colors.LinearSegmentedColormap.from_list(
    "heat", [(0.84, 0.37, 0.0, 0.0), (0.90, 0.50, 0.0, 0.35), (1.0, 0.78, 0.1, 0.8)]
)


def show_heat_map(
    ax: Axes,
    image: UInt8[np.ndarray, "h w"],
    heat: Float[np.ndarray, "a b"],
    mask: Bool[np.ndarray, "c d"] | None = None,
    title: str = "",
) -> None:
    """A map over its radiograph, whatever the size of either, its maximum marked, with the outline of the truth. Says so
    where it is blank, for want of positive evidence, which would look like a mistake."""
    show_radiograph(ax, image, title=title)
    height, width = image.shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    if heat.max() > 0:
        ax.imshow(heat, cmap=HEAT, vmin=0, vmax=1, interpolation="bilinear", extent=extent)
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        at = (column + 0.5) * width / heat.shape[1] - 0.5, (row + 0.5) * height / heat.shape[0] - 0.5
        ax.plot(*at, "+", color="white", markersize=7, markeredgewidth=1.4)
    else:
        ax.text(
            0.5, 0.04, "no positive evidence", color="white", fontsize=8, ha="center", transform=ax.transAxes
        )  # fmt: skip
    if mask is not None and mask.any() and not mask.all():
        ax.contour(mask, [0.5], colors=SKY, linewidths=1.4, extent=extent[:2] + extent[:1:-1])
