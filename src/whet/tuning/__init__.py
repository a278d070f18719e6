"""Tactics by measurement: what was measured, the timing cache on disk, and the order of work of a tuner.

Nothing here runs a model: a provider does, and hands its bench to `tuner.tune`.
"""
