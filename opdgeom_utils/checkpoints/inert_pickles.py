"""What a pickle may hold before anything takes it apart: descriptions of tensors, and no more than it is long.

torch reads its own files with ``weights_only=True`` and builds nothing but what it is told to. Left to us are the
classes that say how a tensor was sharded or stored, for which :class:`Described` stands in; the ``.metadata`` of a
distributed checkpoint, which torch reads as a plain pickle; and pickles that are small and unfold without end, such as
a tuple of two references to one tuple, that of two to another, and so on, which torch would follow.
"""

import functools
import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import torch

from opdgeom_utils.errors import CheckpointUnsafeError

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
DESCRIBED = {
    *("DTensorSpec", "DeviceMesh", "TensorMeta", "ShardOrderEntry", "_MeshLayout", "_FlatLayout", "Layout"),
    *("Shard", "_StridedShard", "Replicate", "Partial", "_Partial", "_MaskPartial", "_get_layout"),
    *("Metadata", "MetadataIndex", "TensorStorageMetadata", "ChunkStorageMetadata", "BytesStorageMetadata"),
    *("TensorProperties", "_MEM_FORMAT_ENCODING", "StorageMeta", "_StorageInfo", "_StoragePrefix"),
    *("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
}
FILLED = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")  # what stands below is filled
JOINED = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST")
CALLED = ("REDUCE", "NEWOBJ", "NEWOBJ_EX")
PARTS_AT_MOST = 10_000  # of a tuple, counting those of the tuples in it as often as they stand there
MARK, NAME = 0, -1


class Described:
    """Stands for an object that says how a tensor was sharded or stored: its attributes, and nothing that it does."""

    def __new__(cls, *_: Any) -> "Described":
        """Forget the arguments."""
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Remember the attributes, or the tuple of values that some classes give in their place."""
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        if all(isinstance(part, dict | None) for part in parts):
            for part in parts:
                self.__dict__.update(part or {})
        else:
            self.values = state


@functools.cache
def described(name: str) -> type[Described]:
    """Return what stands for one of the classes that describe tensors."""
    return type(name, (Described,), {})


class _MetadataUnpickler(pickle.Unpickler):
    """An unpickler that imports nothing."""

    def __init__(self, file: Path, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self.file = file

    def find_class(self, module: str, name: str, /) -> Any:
        if module.split(".")[0] in ("torch", "pathlib") and name in DESCRIBED:
            return described(name)
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        known: dict[tuple[str, str], Any] = {("torch", "Size"): tuple, ("collections", "OrderedDict"): dict}
        if (module, name) not in known:
            raise CheckpointUnsafeError(asks_for(self.file, f"{module}.{name}"))
        return known[module, name]


def load_metadata(file: Path) -> Any:
    """Return the objects of a plain pickle that holds descriptions only.

    Raises CheckpointUnsafeError when it names anything else. A damaged pickle raises anything.
    """
    content = file.read_bytes()
    require_small(io.BytesIO(content), len(content))
    return _MetadataUnpickler(file, content).load()


def asks_for(file: Path, name: str) -> str:
    """Say that a pickle names code."""
    return (
        f"{file}: its pickle asks for {name}, which is no part of a tensor; nothing was run. Save the weights alone, "
        "best as safetensors."
    )


def require_small(stream: Any, length: int) -> None:
    r"""Follow a pickle's stack without building anything, and refuse what would take all memory or time.

    ``stream``: where the pickle starts; it is left where the pickle ends.
    ``length``: bytes that the pickle has at most.
    Raises ValueError when its memo is longer than itself; when a tuple unfolds into too many parts, whose hash would
    visit all of them; when it calls something else than a name, which torch would print.

    >>> bomb = b"K\x01" + b"2\x86" * 60 + b"."  # sixty times a pair of what came before
    >>> require_small(io.BytesIO(bomb), len(bomb))
    Traceback (most recent call last):
    ValueError: a tuple that unfolds into more than 10000 parts
    """
    stack: list[int] = []  # how many parts each object on it unfolds into, or what else it is
    memo: dict[int, int] = {}
    for code, argument, _ in pickletools.genops(stream):
        if code.name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif "PUT" in code.name:
            if (place := int(str(argument))) > length:
                raise ValueError(f"{code.name} {place} in a pickle of {length} bytes")
            memo[place] = stack[-1]
        elif code.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(str(argument))])
        elif code.name == "DUP":
            stack.append(stack[-1])
        elif code.name == "MARK":
            stack.append(MARK)
        elif code.name in ("GLOBAL", "STACK_GLOBAL"):
            del stack[len(stack) - len(code.stack_before) :]
            stack.append(NAME)
        else:
            taken = _popped(stack, code)
            if code.name in CALLED and taken[0] != NAME:
                raise ValueError(f"{code.name} of what is no name")
            parts = 1 + sum(map(abs, taken)) if code.name in JOINED else taken[0] if code.name in FILLED else 1
            if parts > PARTS_AT_MOST:
                raise ValueError(f"a tuple that unfolds into more than {PARTS_AT_MOST} parts")
            stack.extend([parts] * len(code.stack_after))


def _popped(stack: list[int], code: pickletools.OpcodeInfo) -> list[int]:
    """Take off the stack what an instruction uses up: a fixed number, or all above the last mark and the mark."""
    fixed = [kind for kind in code.stack_before if kind not in (pickletools.markobject, pickletools.stackslice)]
    taken: list[int] = []
    if pickletools.markobject in code.stack_before:
        while stack[-1] != MARK:
            taken.append(stack.pop())
        stack.pop()
        fixed = fixed[: code.stack_before.index(pickletools.markobject)]
    below = [stack.pop() for _ in fixed]
    return [*reversed(below), *reversed(taken)]
