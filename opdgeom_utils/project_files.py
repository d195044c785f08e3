"""Where the project's own files lie: in the checkout, or, where the package was installed alone, in what it carries."""

import os
from pathlib import Path

CARRIED = Path(__file__).resolve().parent / "carried"
#: Has ``data``, ``notebooks`` and ``book`` below it.
PROJECT = CARRIED if CARRIED.is_dir() else CARRIED.parent.parent


def runs_folder() -> Path:
    """Return where runs are kept."""
    return Path(os.environ.get("OPDGEOM_RUNS", PROJECT / "data" / "runs"))
