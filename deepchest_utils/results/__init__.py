"""What runs leave behind: their store, metrics, statistics, and the report over many of them."""
