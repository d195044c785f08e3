"""Checkpoints in, one tidy table of every metric and its nulls out."""

from opdgeom_utils.diagnose.trajectory import STEP_IN_NAME, diagnose_pair, diagnose_trajectory

__all__ = ["STEP_IN_NAME", "diagnose_pair", "diagnose_trajectory"]
