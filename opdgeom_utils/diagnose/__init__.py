"""Checkpoints in, one tidy table of every metric and its nulls out."""

from opdgeom_utils.diagnose.trajectory import diagnose_pair, diagnose_trajectory

__all__ = ["diagnose_pair", "diagnose_trajectory"]
