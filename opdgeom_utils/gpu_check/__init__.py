"""Does the project work on this card? Behind ``opdgeom gpu-check``: agreement, speed, memory, short runs, one JSON.

It needs no network and no data beyond the toy models. On ``--device cpu --tiny`` the same code runs on small shapes.
"""

from opdgeom_utils.gpu_check.record import PARTS, SCHEMA, check_card

__all__ = ["PARTS", "SCHEMA", "check_card"]
