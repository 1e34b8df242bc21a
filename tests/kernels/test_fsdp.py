# SPDX-License-Identifier: Apache-2.0
"""Two processes with sharded weights train as one process does. Gloo on the CPU, no network but
a file that the processes meet at."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from viewtime_kernels import view_time_attention

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo here")


class Block(nn.Module):
    """x: (B, N, 16) -> the same, N = 2 * 3 * space; two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 8)).unbind(2)
        return x + self.out(view_time_attention(q, k, v, views=2, times=3).flatten(2))


def model_and_batches():
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block()), torch.randn(2, 1, 24, 16)


def worker(rank: int, meeting: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    model, batches = model_and_batches()
    for block in model:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model(batches[rank]).square().mean().backward()
    grads = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
    if rank == 0:
        torch.save(grads, results)
    dist.destroy_process_group()


def test_sharded_weights_get_the_gradients_of_one_process(tmp_path):
    model, batches = model_and_batches()
    model(batches.flatten(0, 1)).square().mean().backward()
    mp.spawn(worker, (str(tmp_path / "meeting"), str(tmp_path / "grads.pt")), nprocs=2)
    grads = torch.load(tmp_path / "grads.pt", weights_only=True)
    assert len(grads) == 8
    for name, p in model.named_parameters():
        torch.testing.assert_close(grads[name], p.grad)
