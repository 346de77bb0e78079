"""The results of runs: their store, metrics, statistics, and the report over many of them."""
