"""What weighting costs: steps, memory, the loop, its input, and other recipes, measured in turns."""

from deepchest_utils.bench.parts import bench_loop, bench_steps
from deepchest_utils.bench.run import QUICK, full_bench, quick_bench
from deepchest_utils.bench.steps import BARE, Problem
from deepchest_utils.bench.timing import ratios, take_turns

__all__ = [
    "BARE",
    "QUICK",
    "Problem",
    "bench_loop",
    "bench_steps",
    "full_bench",
    "quick_bench",
    "ratios",
    "take_turns",
]
