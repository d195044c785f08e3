"""Commands behind the Makefile's targets, run from the project root as ``python -m tools.NAME``."""
