"""Measurements: ratios of both sides in one run."""
