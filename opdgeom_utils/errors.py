"""Every error this package raises on purpose.

Each class inherits from :class:`OpdGeomError` and from the standard exception a caller would already be catching, so
``except ValueError`` keeps working. Messages say what was found, what was expected, and what to do.
"""

#: How an option is given by each of those who may read an error: of the command, of make, of a chapter, in Python.
WAYS = {
    "allow_pickle": (
        "--allow-pickle",
        "ALLOW_PICKLE=1",
        "-p allow_pickle True",
        "allow_pickle=True of open_checkpoint",
    ),
    "base": ("--base MODEL", "BASE=MODEL", "-p base MODEL", "base=MODEL of open_checkpoint"),
    "learning_rate": (
        "--learning-rate 1e-6",
        "LEARNING_RATE=1e-6",
        "-p learning_rate 1e-6",
        "learning_rates=[1e-6] * 1000",
    ),
    "modules": ("--modules q_proj", "MODULES=q_proj", "-y 'modules: [q_proj]'", 'modules=["q_proj"]'),
    "nulls": ("--exact-nulls", "EXACT_NULLS=1", "-p nulls exact", 'nulls="exact"'),
    "out": ("--out FILE", "OUT=FILE", "-p out FOLDER", "out=FOLDER"),
    "strict": ("--no-strict", "STRICT=0", "-p strict False", "strict=False"),
    "updates": ("--updates 1000", "UPDATES=1000", "-p updates 1000", "learning_rates=[1e-6] * 1000"),
}


def ways(option: str, quote: str = "") -> str:
    """Say how to give an option from wherever the reader of an error is; on a page each way stands in ``quote``.

    >>> ways("strict")
    '--no-strict (opdgeom), STRICT=0 (make report), -p strict False (papermill) or strict=False (Python)'
    """
    command, make, chapter, python = (f"{quote}{way}{quote}" for way in WAYS[option])
    return f"{command} (opdgeom), {make} (make report), {chapter} (papermill) or {python} (Python)"


class OpdGeomError(Exception):
    """Root of the package's errors: ``except OpdGeomError`` catches every deliberate failure."""


class CheckpointNotFoundError(OpdGeomError, FileNotFoundError):
    """A folder, a file or a hub id that should hold weights does not."""


class CheckpointDamagedError(OpdGeomError, ValueError):
    """A weights file is truncated, unreadable, or its content does not match its recorded sha256."""


class CheckpointUnsafeError(OpdGeomError, ValueError):
    """A checkpoint asks for more than tensors: a pickle that names code, or a path that leaves its folder."""


class CheckpointMemoryError(OpdGeomError, MemoryError):
    """The system refused the memory that reading a checkpoint needs; the checkpoint itself is not to blame."""


class CheckpointMismatchError(OpdGeomError, ValueError):
    """Two checkpoints cannot be compared: names missing, extra, ambiguous, or of another shape."""


class MetricInputError(OpdGeomError, ValueError):
    """A metric was given tensors or options for which its number would be meaningless."""


class UnknownProfileError(OpdGeomError, KeyError):
    """No ``data/recipes/<profile>.yaml``."""

    def __str__(self) -> str:  # KeyError quotes its message; ours is a sentence
        return str(self.args[0]) if self.args else ""


class UnknownRecipeError(OpdGeomError, KeyError):
    """The profile exists, but has no recipe of that name."""

    __str__ = UnknownProfileError.__str__


class RecipeError(OpdGeomError, ValueError):
    """A recipe file has an unknown field or a value out of range."""


class TrainingDivergedError(OpdGeomError, FloatingPointError):
    """A loss or a gradient norm was NaN or infinite; nothing after the last checkpoint was kept."""


class TrainingMemoryError(OpdGeomError, MemoryError):
    """A recipe needs more memory than its device has free; the message says what to change."""


class NoCardError(OpdGeomError, RuntimeError):
    """A CUDA card was asked for and there is none; the message says what was found and where to try instead."""


class MissingRunsError(OpdGeomError, RuntimeError):
    """A chapter was asked for a profile of a large model that has no tables; the message says what to train first."""


class RunLockedError(OpdGeomError, RuntimeError):
    """Another process is training this run and did not finish within the waiting time."""


class MonitorError(OpdGeomError, ValueError):
    """A training run cannot be watched as asked: no matrix of that kind, or another start than the one named."""


class StorageError(OpdGeomError, OSError):
    """The disk is full or not writable; nothing half-written was left behind."""


class StaleResultsError(OpdGeomError, RuntimeError):
    """A committed table was made by another recipe or training version than today's: run ``make runs``."""


class TrainerStateError(OpdGeomError, ValueError):
    """A trainer's log, ``trainer_state.json``, is damaged or does not tell the learning rates."""


class NotebookParameterError(OpdGeomError, ValueError):
    """A papermill parameter that the notebook does not declare, or of the wrong type."""


class NotebookFailedError(OpdGeomError, RuntimeError):
    """A notebook stopped with an error; the message holds the cell and the end of the traceback."""


class ChartDescriptionError(OpdGeomError, ValueError):
    """A chart has no description, so a reader who cannot see it gets nothing."""


class MissingPackageError(OpdGeomError, ImportError):
    """Something was asked for that needs a package which is not installed; the message says which."""
