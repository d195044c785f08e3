"""How a table of matrices is measured, and which columns it has then."""

from __future__ import annotations

from dataclasses import dataclass

from opdgeom_utils.diagnose.beside_noise import PLACE_COLUMNS, WALK_COLUMNS
from opdgeom_utils.diagnose.nulls import null_generator
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.metrics.inputs import check_count, check_fraction
from opdgeom_utils.metrics.noise_walk import Walk
from opdgeom_utils.vocabulary import null_columns, per_matrix

COLUMNS = [
    *("name", "layer", "module", "shape", "dtype", "n_entries"),
    *per_matrix(),
    *("reference_norm", "gap_at_k", "angles_defined", "note"),
]
NULL_COLUMNS = null_columns()
EXPECTED_COLUMNS = [*(c for c in NULL_COLUMNS if not c.endswith("_identical")), "null_note"]
NOISE_COLUMNS = [*WALK_COLUMNS, *PLACE_COLUMNS]


@dataclass(frozen=True)
class Settings:
    """How a table is measured; the fields are the options of :func:`~opdgeom_utils.diagnose.diagnose_pair`.

    ``walks`` has noise's walk up to each checkpoint, None where no schedule is known; without any schedule it is empty.
    Raises MetricInputError when an option is out of range.
    """

    eta: float | int
    alpha: float | int
    rank: int
    k: int
    nulls: bool | str
    seed: int
    device: str
    walks: tuple[Walk | None, ...] = ()

    def __post_init__(self) -> None:
        if self.nulls not in (False, True, "expected", "exact"):
            raise MetricInputError(f"nulls is {self.nulls!r}, expected 'expected', 'exact' (or True), or False.")
        check_fraction("eta", self.eta)
        check_fraction("alpha", self.alpha)
        check_count("rank", self.rank)
        check_count("k", self.k)
        null_generator(self.seed, "")

    @property
    def exact(self) -> bool:
        """Whether null updates are made and measured."""
        return self.nulls in (True, "exact")

    def columns(self) -> list[str]:
        """Columns of a table, beginning with the step."""
        nulls = NULL_COLUMNS if self.exact else EXPECTED_COLUMNS if self.nulls else []
        return ["step", *COLUMNS, *nulls, *(NOISE_COLUMNS if self.walks else [])]
