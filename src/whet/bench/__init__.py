"""Timing: one engine's latency, and several engines side by side, one process each."""
