"""Write what a sharded training run leaves, from several real processes: run as ``write_shards.py FOLDER RANK WORLD``.

Rank files of DTensors on a mesh of one dimension (``line``) and of two (``grid``), with a partial sum (``partial``),
and a folder of ``torch.distributed.checkpoint`` (``distributed``), with an optimiser beside the model.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard


def full_tensors() -> dict[str, torch.Tensor]:
    """The tensors before they are sharded; sizes that four ranks do not divide are among them."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"q_proj": (16, 8), "k_proj": (7, 5), "v_proj": (9, 6), "o_proj": (8, 8), "up_proj": (10, 8)}
    made = {
        f"model.layers.0.{name}.weight": torch.randn(shape, generator=generator).bfloat16()
        for name, shape in shapes.items()
    }
    return made | {"model.norm.weight": torch.randn(3, generator=generator), "model.scale": torch.tensor([2.0])}


def main() -> None:
    """Be one rank."""
    folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    line = init_device_mesh("cpu", (world,), mesh_dim_names=("fsdp",))
    grid = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("dp", "tp"))
    on_line = [[Shard(0)], [Shard(1)], [Shard(0)], [Replicate()], [Shard(0)], [Shard(0)]]
    on_grid = [
        *([_StridedShard(0, split_factor=world // 2), Shard(0)], [Replicate(), Shard(0)], [Shard(0), Shard(1)]),
        *([Shard(1), Replicate()], [Shard(0), Shard(0)], [Replicate(), Replicate()]),
    ]
    full = full_tensors()
    for name, mesh, placements in (("line", line, on_line), ("grid", grid, on_grid)):
        state = {
            key: distribute_tensor(tensor, mesh, placement, src_data_rank=None)
            for (key, tensor), placement in zip(full.items(), placements, strict=False)
        }
        state["model.scale"] = full["model.scale"]
        if mesh is grid:  # sharded over a part of the mesh, as a layer of tensor parallelism is without FSDP
            key = "model.layers.0.up_proj.weight"
            state[key] = distribute_tensor(full[key], grid["tp"], [Shard(1)], src_data_rank=None)
        (folder / name).mkdir(exist_ok=True)
        torch.save(state, folder / name / f"model_world_size_{world}_rank_{rank}.pt")
    dcp.save({"model": state, "optim": {"step": 3}}, checkpoint_id=folder / "distributed")
    (folder / "partial").mkdir(exist_ok=True)
    partial = DTensor.from_local(full["model.scale"], line, [Partial()], run_check=False)
    torch.save({"model.scale": partial}, folder / "partial" / f"model_world_size_{world}_rank_{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
