"""Weights stored in 8 bits beside their scales: put back into float32 when they are read, one matrix at a time.

What transformers, compressed-tensors and ComfyUI write: ``X.weight`` in fp8 with ``X.weight_scale_inv``, one scale for
the whole matrix or for each block of ``quantization_config.weight_block_size`` entries; or with ``X.weight_scale``, one
for the matrix, for each row, with or without a dimension of 1 at its end, or for each block of its group's
``block_structure``; or with ``X.scale_weight``, one for the matrix. A weight is its stored value times its scale.
Packed experts have one more dimension in front.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from opdgeom_utils.checkpoints.other_files import dequantised
from opdgeom_utils.checkpoints.sharded_tensors import bounds_of, every_cut
from opdgeom_utils.checkpoints.stored_tensors import Cut, StoredTensor
from opdgeom_utils.checkpoints.weight_files import shortened
from opdgeom_utils.errors import CheckpointDamagedError, MetricInputError

SCALES = ("_scale_inv", "_scale")
COMFY = re.compile(r"(?P<module>.+)\.scale_(?P<what>weight|input)")
OF_ACTIVATIONS = ("activation_scale", "input_scale", "input_scale_ub", "output_scale", "k_scale", "v_scale")


@dataclass(frozen=True)
class Scaled:
    """Read a matrix in float32 and multiply it by its scales.

    ``stored``, ``scale``: the weights as stored, and what to multiply them by, if anything.
    ``block``: rows and columns that share a scale.
    """

    stored: StoredTensor
    scale: StoredTensor | None = None
    block: tuple[int, int] = (1, 1)

    def __call__(self, cuts: tuple[Cut, ...] = ()) -> Tensor:
        """Return a part of the weights, after cutting both the stored values and their scales."""
        shape = self.stored.shape
        if self.scale is None:
            return self.stored.read_part(cuts).float()
        if torch.Size(self.scale.shape).numel() == 1:
            return self.stored.read_part(cuts).float() * self.scale.read_unchecked().float().reshape(())
        *outer, of_rows, of_columns = every_cut(cuts, shape)
        first, last, rows = bounds_of(of_rows, shape[-2])
        left, right, columns = bounds_of(of_columns, shape[-1])
        high, wide = self.block
        values = self.stored.read_part((*outer, slice(first, last), slice(left, right))).float()
        across = (slice(left // wide, -(-right // wide)),) if len(self.scale.shape) == len(shape) else ()
        scale = self.scale.read_part((*outer, slice(first // high, -(-last // high)), *across)).float()
        scale = (scale if across else scale.unsqueeze(-1)).repeat_interleave(high, dim=-2)
        scale = scale[..., first % high :, :][..., : last - first, :].repeat_interleave(wide, dim=-1)
        return (values * scale[..., left % wide :][..., : right - left])[..., rows, columns]


def unscaled(
    tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]
) -> tuple[dict[str, StoredTensor], list[str]]:
    """Fold each scale into the weight beside it.

    Returns the weights, and the names of the scales, which are no weights. Eight-bit weights without a scale keep their
    values. Raises CheckpointDamagedError when a scale has no weight, a quantised weight no scale, or the two do not
    fit. Raises MetricInputError when what lies beside such a weight is called a scale and is of no known form.
    """
    weights, scales = dict(tensors), []
    for name, scale in tensors.items():
        if found := COMFY.fullmatch(name):
            owner = tensors.get(f"{found['module']}.weight")
            if owner is not None and owner.dtype.itemsize == 1:
                del weights[name]
                scales.append(name)
                if found["what"] == "weight":
                    weights[f"{found['module']}.weight"] = _scaled(owner, scale, config)
            continue
        ending = next((ending for ending in SCALES if name.endswith(ending)), None)
        if name.rsplit(".", 1)[-1] in OF_ACTIVATIONS:
            del weights[name]
            scales.append(name)
        elif ending and (owner := name.removesuffix(ending)) in tensors and tensors[owner].dtype.itemsize == 1:
            del weights[name]
            scales.append(name)
            weights[owner] = _scaled(tensors[owner], scale, config)
        elif ending and scale.key.endswith(("weight_scale_inv", "weight_scale")):
            raise CheckpointDamagedError(
                f"{scale.where}: scale {scale.key} has no 8-bit weight; copy the checkpoint again."
            )
    quantised = isinstance(config.get("quantization_config"), Mapping)
    for name, tensor in weights.items():
        if tensor.dtype.itemsize == 1 and not isinstance(tensor.load, Scaled):
            beside = [
                other for other in tensors if other.startswith(f"{name.rpartition('.')[0]}.") and "scale" in other
            ]
            if beside:
                raise MetricInputError(
                    f"{tensor.where}: tensor {tensor.key} has 8 bits, and {shortened(beside)} beside it, a scale of no "
                    f"form that is known here {dequantised(tensors)}"
                )
            if quantised:
                raise CheckpointDamagedError(
                    f"{tensor.where}: tensor {tensor.key} is quantised, but no {name}_scale_inv or {name}_scale is "
                    "there."
                )
            weights[name] = replace(tensor, held=None, load=Scaled(tensor))
    return weights, scales


def _scaled(stored: StoredTensor, scale: StoredTensor, config: Mapping[str, Any]) -> StoredTensor:
    shape, count = stored.shape, torch.Size(scale.shape).numel()
    block = _block(scale.key, config.get("quantization_config"))
    if isinstance(block, list) and len(block) == 2 and count != 1:
        rows, columns = block
    else:
        rows, columns = 1, shape[-1] if shape else 1
    whole = type(rows) is int and type(columns) is int and rows > 0 and columns > 0
    fits = whole and len(shape) >= 2 and scale.shape == (*shape[:-2], -(-shape[-2] // rows), -(-shape[-1] // columns))
    fits = fits or (len(shape) >= 2 and (rows, columns) == (1, shape[-1]) and scale.shape == shape[:-1])
    if count != 1 and not fits:
        raise CheckpointDamagedError(
            f"{stored.where}: scale {scale.key} has shape {scale.shape}, which does not fit {stored.key} {shape} in "
            f"blocks of {rows} x {columns}; copy the checkpoint with its config.json."
        )
    return replace(stored, held=None, load=Scaled(stored, scale, (rows, columns)))


def _block(key: str, declared: Any) -> Any:
    """Return the rows and columns of a block, by what a configuration says of a scale of this name; None if nothing."""
    if not isinstance(declared, Mapping):
        return None
    if key.endswith("_scale_inv"):
        return declared.get("weight_block_size")
    groups = declared.get("config_groups")
    weights = [group.get("weights") for group in groups.values() if isinstance(group, Mapping)] if groups else []
    blocks = [one.get("block_structure") for one in weights if isinstance(one, Mapping)]
    return blocks[0] if len(blocks) == 1 else None
