"""Many runs: the product of lists of settings, one cell a run, on all cores or a cluster; finished cells are kept,
failed ones noted."""

from deepchest_utils.sweep.cells import Cell, make_cells
from deepchest_utils.sweep.compare import compare_methods
from deepchest_utils.sweep.controlled import controlled_effects, controlled_runs, weight_ratios
from deepchest_utils.sweep.run import Tables, run_sweep
from deepchest_utils.sweep.tuning import best_lr, tuning_scores

__all__ = [
    "Cell", "Tables", "best_lr", "compare_methods", "controlled_effects", "controlled_runs", "make_cells", "run_sweep",
    "tuning_scores", "weight_ratios",
]  # fmt: skip
