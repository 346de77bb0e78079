"""What reruns say, put together: `python -m deepchest_utils report runs/`, or `report("runs")` in a notebook."""

from deepchest_utils.report.collect import Reruns, collect_runs
from deepchest_utils.report.summary import Report, describe, draw_summary, report, summarise

__all__ = ["Report", "Reruns", "collect_runs", "describe", "draw_summary", "report", "summarise"]
