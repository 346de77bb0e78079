"""What weighting costs: steps, memory, the loop, its input, and other recipes, measured in turns."""

from deepchest_utils.studies.bench.parts import QUICK, bench_loop, bench_steps, format_bench, full_bench, quick_bench
from deepchest_utils.studies.bench.steps import PLAIN_STEP, BenchmarkSetup
from deepchest_utils.studies.bench.timing import ratios, time_interleaved

__all__ = [
    "PLAIN_STEP", "QUICK", "BenchmarkSetup", "bench_loop", "bench_steps", "format_bench", "full_bench", "quick_bench",
    "ratios", "time_interleaved",
]  # fmt: skip
