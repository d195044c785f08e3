"""Read a pickle without running anything that is in it.

Every name that the pickle asks for is looked up in a table and never imported. The few classes that describe how a
tensor was sharded or stored become :class:`Recorded`, which only remember their arguments; the functions that rebuild
tensors are replaced by our own. A pickle with code in it is an error that names the file and the code.
"""

import io
import pickle
import pickletools
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
        for code, argument, _ in pickletools.genops(content):  # a memo or a length beyond the pickle takes all memory
            if "PUT" in code.name and isinstance(argument, int) and argument > len(content):
                raise ValueError(f"{code.name} {argument} in a pickle of {len(content)} bytes")

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
