"""Read a pickle without running anything that is in it.

Every name that the pickle asks for is looked up in a table and never imported. The few classes that describe how a
tensor was sharded or stored become :class:`Recorded`, which only remember their arguments; the functions that rebuild
tensors are replaced by our own. A pickle with code in it is an error that names the file and the code.

A pickle can also be small and unfold without end: a tuple of two references to one tuple, that of two to another, and
so on. Such tuples are refused before anything is built, and what should be sizes is checked before it is looked at.
"""

import io
import pickle
import pickletools
import reprlib
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from opdgeom_utils.errors import CheckpointUnsafeError

# Everything that a damaged or hostile file can raise while it is taken apart.
DAMAGE = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, OSError, EOFError, MemoryError, RecursionError),
    *(ValueError, TypeError, LookupError, AttributeError, NotImplementedError, OverflowError, RuntimeError),
)
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
STORAGES = {
    **{"DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16},
    **{"BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32},
    **{"ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8},
    **{"BoolStorage": torch.bool, "UntypedStorage": torch.uint8},
}
RECORDED = {
    *("DTensor", "DTensorSpec", "DeviceMesh", "TensorMeta", "ShardOrderEntry", "_MeshLayout", "_FlatLayout", "Layout"),
    *("Shard", "_StridedShard", "Replicate", "Partial", "_Partial", "_MaskPartial", "device", "_get_layout"),
    *("Metadata", "MetadataIndex", "TensorStorageMetadata", "ChunkStorageMetadata", "BytesStorageMetadata"),
    *("TensorProperties", "_MEM_FORMAT_ENCODING", "StorageMeta", "_StorageInfo", "_StoragePrefix"),
}

PARTS_AT_MOST = 10_000  # of a tuple, counting those of the tuples in it as often as they stand there
NUMBERS_AT_MOST = 64  # in a shape, a stride, an offset: torch itself stops at 64 dimensions
UNHASHED = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")  # they fill what stands below them
JOINED = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST")
PATHS = {("pathlib", name) for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")} | {
    ("pathlib._local", name) for name in ("PosixPath", "WindowsPath")
}


class Recorded:
    """An object of a known class that was not built: its name, the arguments, the state that it was given."""

    name = ""
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> "Recorded":
        """Remember the arguments."""
        made = super().__new__(cls)
        made.args, made.state = args, {}
        return made

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Remember the state, whatever it is; of a pair (attributes, slots), both."""
        is_pair = isinstance(state, tuple) and len(state) == 2 and all(isinstance(s, dict | None) for s in state)
        self.state = {**(state[0] or {}), **(state[1] or {})} if is_pair else state

    def get(self, key: str) -> Any:
        """Return one field of the state, None if there is none."""
        return self.state.get(key) if isinstance(self.state, dict) else None


class Named(dict[Any, Any]):
    """An ordered dictionary whose attributes are dropped: a model's state carries versions of its modules there."""

    def __setstate__(self, state: Any) -> None:
        """Drop the attributes."""

    def __repr__(self) -> str:  # messages must not unfold what it holds
        return f"OrderedDict of {len(self)}"


class InertUnpickler(pickle.Unpickler):
    """An unpickler whose every name is looked up in the tables above, never imported.

    Parameters
    ----------
    file : Path
        For messages.
    content : bytes
        The pickle.
    storage : callable, optional
        From a persistent id to a storage's first byte, length and type; without it, storages are refused.
    tensor : callable, optional
        From ``(start, length, dtype, offset, shape, stride)`` to what stands for a tensor.
    """

    def __init__(
        self,
        file: Path,
        content: bytes,
        storage: Callable[[Any], Any] | None = None,
        tensor: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(io.BytesIO(content))
        self.file, self.storage, self.tensor = file, storage, tensor
        _check_size(content)

    def find_class(self, module: str, name: str, /) -> Any:
        """Return what stands for a name: a type of tensor entries, an inert class, or an error."""
        known = {
            ("collections", "OrderedDict"): Named,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v3"): self._typed_tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
            ("torch._utils", "_rebuild_wrapper_subclass"): self._arguments,
            ("torch._tensor", "_rebuild_from_type_v2"): self._subclass,
        }
        if (module, name) in known:
            return known[module, name]
        if module in ("torch", "torch.storage"):
            if name in DTYPES:
                return DTYPES[name]
            if name in STORAGES:
                return STORAGES[name]
        if (module.split(".")[0] == "torch" and name in RECORDED) or (module, name) in PATHS:
            return type(name, (Recorded,), {"name": name})
        raise CheckpointUnsafeError(
            f"{self.file}: its pickle asks for {module}.{name}, which is no part of a tensor; nothing was run. Save "
            "the weights alone, best as safetensors."
        )

    def persistent_load(self, pid: Any, /) -> Any:
        """Return where a storage lies."""
        if self.storage is None:
            raise ValueError("a storage in a pickle that should hold none")
        return self.storage(pid)

    def _tensor(self, storage: Any, offset: int, shape: Any, stride: Any, *_: Any) -> Any:
        start, length, dtype = storage
        return self._built(start, length, dtype, offset, shape, stride)

    def _typed_tensor(
        self, storage: Any, offset: int, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: torch.dtype, *_: Any
    ) -> Any:
        start, length, _ = storage
        return self._built(start, length, dtype, offset, shape, stride)

    def _parameter(self, tensor: Any, *_: Any) -> Any:
        return tensor

    def _arguments(self, *arguments: Any) -> tuple[Any, ...]:
        return arguments

    def _subclass(self, build: Callable[..., Any], kind: Any, arguments: Any, state: Any) -> Any:
        """Stand for a tensor subclass: the tensor itself, or what is known of a distributed one."""
        if isinstance(kind, type) and getattr(kind, "name", "") == "DTensor":
            made = kind(*arguments)
            made.__setstate__(state)
            return made
        return build(*arguments)

    def _built(self, *form: Any) -> Any:
        if self.tensor is None:
            raise ValueError("a tensor in a pickle that should hold none")
        return self.tensor(*form)


def whole_numbers(found: Any, what: str) -> tuple[int, ...]:
    """Return what a pickle holds as sizes, strides or offsets, after checking that it is that.

    Raises
    ------
    ValueError
        When it is no short tuple of whole numbers that fit 63 bits.

    Examples
    --------
    >>> whole_numbers([2, 3], "shape")
    (2, 3)
    >>> whole_numbers((2, (3, 4)), "shape")
    Traceback (most recent call last):
    ValueError: shape (2, (3, 4)), expected at most 64 whole numbers
    """
    if (
        not isinstance(found, tuple | list)
        or len(found) > NUMBERS_AT_MOST
        or not all(type(number) is int and 0 <= number < 2**63 for number in found)
    ):
        raise ValueError(f"{what} {reprlib.repr(found)}, expected at most {NUMBERS_AT_MOST} whole numbers")
    return tuple(found)


def _check_size(content: bytes) -> None:
    """Follow a pickle's stack without building anything, and refuse what would take all memory or time.

    That is a memo beyond the pickle's length, and a tuple that unfolds into too many parts: as the key of a dictionary
    it would already hang the unpickler, since its hash visits every part.
    """
    stack: list[int] = []  # how many parts each object on the stack unfolds into; 0 is a mark
    memo: dict[int, int] = {}
    for code, argument, _ in pickletools.genops(content):
        if code.name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif "PUT" in code.name:
            if (place := int(str(argument))) > len(content):
                raise ValueError(f"{code.name} {place} in a pickle of {len(content)} bytes")
            memo[place] = stack[-1]
        elif code.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(str(argument))])
        elif code.name == "DUP":
            stack.append(stack[-1])
        elif code.name == "MARK":
            stack.append(0)
        else:
            taken = _popped(stack, code)
            parts = 1 + sum(taken) if code.name in JOINED else taken[0] if code.name in UNHASHED else 1
            if parts > PARTS_AT_MOST:
                raise ValueError(f"a tuple that unfolds into more than {PARTS_AT_MOST} parts")
            stack.extend([parts] * len(code.stack_after))


def _popped(stack: list[int], code: pickletools.OpcodeInfo) -> list[int]:
    """Take off the stack what an instruction uses up: a fixed number, or all above the last mark and the mark."""
    fixed = [kind for kind in code.stack_before if kind not in (pickletools.markobject, pickletools.stackslice)]
    taken: list[int] = []
    if pickletools.markobject in code.stack_before:
        while stack[-1]:
            taken.append(stack.pop())
        stack.pop()
        fixed = fixed[: code.stack_before.index(pickletools.markobject)]
    below = [stack.pop() for _ in fixed]
    return [*reversed(below), *reversed(taken)]
