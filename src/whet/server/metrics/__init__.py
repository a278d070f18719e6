"""What a scrape of /metrics answers: the counters of `server/stats.py`, the machine's figures, the GPUs'."""
