"""Execute a Triton kernel as it was compiled, on a machine without a GPU: one that is right, one without its mask."""

import torch
import triton
import triton.language as tl

import customops


@triton.jit
def add(x, y, z, n, BLOCK: tl.constexpr):
    """Add two vectors of ``n`` elements."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(x + i, mask=i < n) + tl.load(y + i, mask=i < n)
    tl.store(z + i, total, mask=i < n)


@triton.jit
def add_unmasked(x, y, z, n, BLOCK: tl.constexpr):
    """Add two vectors, and whatever lies behind them."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(x + i) + tl.load(y + i)
    tl.store(z + i, total, mask=i < n)


def main() -> None:
    """Launch both kernels on tensors on the CPU."""
    x, y = torch.rand(1000), torch.rand(1000)
    z = torch.empty_like(x)
    with customops.dry_run("cuda:90", execute=True) as records:
        add[(4,)](x, y, z, 1000, BLOCK=256)
        print("equal to torch's:", torch.equal(z, x + y))
        print(records[0].traffic)
        try:
            add_unmasked[(4,)](x, y, z, 1000, BLOCK=256)
        except customops.KernelFault as fault:
            print(fault.reason)
            print(f"{fault.kernel}, {fault.source}, program {fault.program}, thread {fault.thread}")
            print(fault.instruction)


if __name__ == "__main__":
    main()
    raise SystemExit(0)
