"""PyTorch's engines, each with the options it is tried with: data, tensor and pipeline parallel, and two at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from .conftest import DEVICE
from .network import Engine, Network, as_it_is, at_once


def own_share(x: Tensor) -> Tensor:
    """Return the part of a batch that this rank alone has."""
    return x.chunk(dist.get_world_size())[dist.get_rank()]


def share_of_two(x: Tensor) -> Tensor:
    """Return the part of a batch that this rank and its neighbour have."""
    return x.chunk(dist.get_world_size() // 2)[dist.get_rank() // 2]


def ddp(model: Network, change: Callable = as_it_is, hook: Callable | None = None, **options) -> nn.Module:
    parallel = DistributedDataParallel(change(model), **options)
    if hook:
        parallel.register_comm_hook(None, hook)
    return parallel


def fsdp(model: Network, change: Callable = as_it_is, **options) -> nn.Module:
    for block in (model.first, model.second):
        fully_shard(block, **options)
    return fully_shard(change(model), **options)


def with_unused(model: Network) -> Network:
    model.first.unused = nn.Parameter(torch.zeros_like(model.first.norm.shift))
    return model


def recomputed(model: Network) -> Network:
    model.first.forward = partial(checkpoint, model.first.forward, use_reentrant=False)
    return model


def compiled(model: Network) -> Network:
    model.first.compile(backend="aot_eager")
    return model


def tensor_parallel(model: Network, mesh: DeviceMesh | None = None, local: bool = True) -> nn.Module:
    """Split the sequence for norms, the features for layers; what goes between them is ``local`` or a DTensor."""
    to = {"use_local_output": local}
    plan = {
        "enter": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1), **to),
        "norm": SequenceParallel(**to),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate() if local else Shard(-1), **to),
    }
    for block in ("first", "second"):
        plan[f"{block}.norm"] = SequenceParallel(**to)
        plan[f"{block}.feed"] = PrepareModuleInput(
            input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),), **to
        )
        plan[f"{block}.feed.gate"] = plan[f"{block}.feed.up"] = ColwiseParallel(**to)
        plan[f"{block}.feed.down"] = RowwiseParallel(output_layouts=Shard(1), **to)
    return parallelize_module(model, mesh or init_device_mesh(DEVICE, (dist.get_world_size(),)), plan)


def pipeline(
    model: Network,
    schedule: type,
    microbatches: int = 4,
    mesh: DeviceMesh | None = None,
    change: Callable = as_it_is,
) -> nn.Module:
    """Return this rank's stage of two, of which the first holds the first two layers."""
    mesh = mesh or init_device_mesh(DEVICE, (2,))
    index, layers = mesh.get_local_rank(), list(model.named_children())
    part = change(nn.Sequential(OrderedDict([layers[:2], layers[2:]][index])))
    part.stage = PipelineStage(part, index, 2, torch.device(DEVICE), group=mesh.get_group())
    part.schedule = schedule(part.stage, microbatches, loss_fn=model.loss)
    return part


def by_schedule(part: nn.Module, _loss: Callable, x: Tensor, targets: Tensor) -> Tensor | None:
    """Pass a batch through the pipeline, whose last stage knows the losses."""
    losses: list[Tensor] = []
    if part.stage.is_first:
        part.schedule.step(x)
    else:
        part.schedule.step(target=targets, losses=losses)
    return torch.stack(losses).mean() if losses else None


def by_halves(parallel: nn.Module, loss: Callable, x: Tensor, targets: Tensor) -> Tensor:
    """Accumulate the gradients of two halves of a batch, which the ranks exchange after the second."""
    (first, second), (wanted, last) = x.chunk(2), targets.chunk(2)
    half = lambda *args: loss(*args) / 2
    if isinstance(parallel, DistributedDataParallel):
        with parallel.no_sync():
            total = at_once(parallel, half, first, wanted)
    else:
        parallel.set_requires_gradient_sync(False)
        total = at_once(parallel, half, first, wanted)
        parallel.set_requires_gradient_sync(True)
    return total + at_once(parallel, half, second, last)


def two_meshes(first: str, second: str) -> DeviceMesh:
    return init_device_mesh(DEVICE, (2, 2), mesh_dim_names=(first, second))


def hybrid(model: Network) -> nn.Module:
    """Shard parameters over two ranks, and repeat them on the other two."""
    return fsdp(model, mesh=two_meshes("repeated", "sharded"))


def tensor_parallel_fsdp(model: Network, local: bool) -> nn.Module:
    mesh = two_meshes("data", "tensor")
    return fsdp(tensor_parallel(model, mesh["tensor"], local), mesh=mesh["data"])


def pipeline_fsdp(model: Network) -> nn.Module:
    mesh = two_meshes("data", "stage")
    return pipeline(model, ScheduleGPipe, mesh=mesh["stage"], change=partial(fully_shard, mesh=mesh["data"]))


_DDP, _FSDP = Engine(ddp, share=own_share), Engine(fsdp, share=own_share)

ENGINES = {
    "ddp": _DDP,
    "ddp, static graph": _DDP._replace(wrap=partial(ddp, static_graph=True)),
    "ddp, several buckets": _DDP._replace(wrap=partial(ddp, bucket_cap_mb=1e-3)),
    "ddp, views": _DDP._replace(wrap=partial(ddp, gradient_as_bucket_view=True)),
    "ddp, an unused parameter": _DDP._replace(wrap=partial(ddp, change=with_unused, find_unused_parameters=True)),
    "ddp, accumulated": _DDP._replace(differentiate=by_halves),
    "ddp, hook": _DDP._replace(wrap=partial(ddp, hook=default_hooks.allreduce_hook)),
    "ddp, clipped": _DDP._replace(clips=True),
    "ddp, recomputed": _DDP._replace(wrap=partial(ddp, change=recomputed)),
    "ddp, compiled": _DDP._replace(wrap=partial(ddp, change=compiled)),
    "fsdp": _FSDP,
    "fsdp, kept whole": _FSDP._replace(wrap=partial(fsdp, reshard_after_forward=False)),
    "fsdp, offloaded": _FSDP._replace(wrap=partial(fsdp, offload_policy=CPUOffloadPolicy(pin_memory=False))),
    "fsdp, accumulated": _FSDP._replace(differentiate=by_halves),
    "fsdp, clipped": _FSDP._replace(clips=True),
    "fsdp, recomputed": _FSDP._replace(wrap=partial(fsdp, change=recomputed)),
    "fsdp, compiled": _FSDP._replace(wrap=partial(fsdp, change=compiled)),
    "tensor": Engine(tensor_parallel),
    "tensor, DTensors": Engine(partial(tensor_parallel, local=False)),
    "tensor, clipped": Engine(tensor_parallel, clips=True),
    "pipeline, GPipe": Engine(partial(pipeline, schedule=ScheduleGPipe), by_schedule),
    "pipeline, 1F1B": Engine(partial(pipeline, schedule=Schedule1F1B), by_schedule),
}

OF_FOUR = {
    "fsdp, repeated": Engine(hybrid, share=own_share),
    "tensor and fsdp": Engine(partial(tensor_parallel_fsdp, local=True), share=share_of_two),
    "tensor and fsdp, DTensors": Engine(partial(tensor_parallel_fsdp, local=False), share=share_of_two),
    "pipeline and fsdp": Engine(pipeline_fsdp, by_schedule, share_of_two),
}

HALF = {
    "ddp, compressed": _DDP._replace(wrap=partial(ddp, hook=default_hooks.fp16_compress_hook)),
    "fsdp, mixed": _FSDP._replace(wrap=partial(fsdp, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))),
}
