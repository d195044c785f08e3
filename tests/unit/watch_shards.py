"""One of two processes that train a model sharded by FSDP 2 under a monitor: rank, port, folder."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from opdgeom_utils import GeometryMonitor


def train(folder: Path, *, sharded: bool) -> list[torch.Tensor]:
    """Two layers, four updates, the same data in each process; returns whole weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40, bias=False), nn.Linear(40, 24, bias=False)).to(torch.bfloat16).float()
    if sharded:
        mesh = init_device_mesh("cpu", (2,))
        for layer in (*model, model):
            fully_shard(layer, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    name = "sharded" if sharded else "whole"
    with GeometryMonitor(model, optimizer, every=2, k=4, matrices="all", out=folder / f"{name}.parquet"):
        for step in range(4):
            x = torch.randn(8, 24, generator=torch.Generator().manual_seed(step))
            (model(x) - x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return [p.full_tensor() if sharded else p for p in model.parameters()]


if __name__ == "__main__":
    rank, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo")
    train(folder, sharded=True)
    if rank == 0:
        train(folder, sharded=False)
    dist.destroy_process_group()
