"""Train a small Mamba on sequences that are divided among processes: on one machine or many, with a CPU or a GPU each.

torchrun --standalone --nproc-per-node 2 examples/sequence_parallel.py

Every sequence lies on `--parts` processes (all, unless said), each with a stretch of it; if there are more processes, the
others have sequences of their own (data parallelism), and gradients are averaged over all: by DDP, or with `--shard` by
FSDP2, which also divides weights, gradients and the optimiser's state. The losses printed are the same, up to rounding, for
every number of processes, also for one: `python examples/sequence_parallel.py`.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import statescan
from statescan.parallel import sequence_parallel

TEXT = Path(__file__).with_name("king_james_bible.txt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=TEXT)
    parser.add_argument("--model", default="mamba_tiny")
    parser.add_argument("--parts", type=int, default=None, help="processes of one sequence (default: all)")
    parser.add_argument("--shard", action="store_true", help="FSDP2 instead of DDP")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=2, help="sequences of all processes together")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=NUMBER", help="fields of the model's config")
    options = parser.parse_args()

    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ:  # torchrun says who is who
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    size = dist.get_world_size()
    parts = options.parts or size
    if size % parts or options.batch_size % (size // parts):
        raise SystemExit(f"{size} processes do not make whole groups of {parts}, or these do not divide the batch")
    mesh = init_device_mesh(device.type, (size // parts, parts), mesh_dim_names=("data", "sequence"))

    torch.manual_seed(0)  # equal weights everywhere
    model = statescan.create_model(options.model, **{k: int(v) for k, _, v in (s.partition("=") for s in options.set)})
    model.to(device)
    sequence = sequence_parallel(model, mesh["sequence"].get_group())
    groups = model.parameter_groups(0.1)
    wrapped = model
    if options.shard:
        whole = init_device_mesh(device.type, (size,))
        for block in model.stack.blocks:
            fully_shard(block, mesh=whole)
        fully_shard(model, mesh=whole)
        groups = model.parameter_groups(0.1)  # the shards take the parameters' place
    else:
        wrapped = DistributedDataParallel(model)
    optimiser = torch.optim.AdamW(groups, lr=options.learning_rate)

    text = torch.frombuffer(bytearray(options.data.read_bytes()), dtype=torch.uint8).long()
    mine = range(mesh.get_local_rank("data"), options.batch_size, size // parts)
    for step in range(options.steps):
        order = torch.Generator().manual_seed(step)
        starts = torch.randint(len(text) - options.length - 1, (options.batch_size,), generator=order)
        rows = torch.stack([text[start : start + options.length + 1] for start in starts[list(mine)].tolist()])
        # Targets are made before the division: the next token of a part's last one is in the next part.
        tokens, targets = (sequence.split(half).to(device) for half in (rows[:, :-1], rows[:, 1:]))
        logits, _ = wrapped(tokens, return_state=False)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
        loss = loss / (options.batch_size * options.length)
        (size * loss).backward()  # DDP and FSDP2 average over processes, whose losses are shares of one sum
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        loss = loss.detach()
        dist.all_reduce(loss)
        if dist.get_rank() == 0:
            print(f"step {step}: loss {loss.item():.5f}", flush=True)
    sequence.remove()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
