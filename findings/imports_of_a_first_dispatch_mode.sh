#!/usr/bin/env bash
# PyTorch 2.13.0 and Triton 3.7.1, CPU, x86-64: what a few lines of eager code import when they first run.
#
# Guess: modules that import torch imported already: a TorchDispatchMode only passes on what it gets, addition on the
#        meta device only computes a shape, and autograd.grad with a gradient for the result is backward() with one.
# Seen: each of them imports SymPy, hundreds of modules, at its first run: the mode torch._dynamo, and with it Triton
#       where that is installed; addition on the meta device the same; autograd.grad the symbolic shapes of torch.fx,
#       with which it compares two shapes, although backward() of a sum imports nothing. So whoever times a first call
#       times imports, and a library that asks a meta tensor for a shape makes its user wait for seconds.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 triton==3.7.1 numpy==2.4.6
cat >"$dir/first.py" <<'PY'
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Passes(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def dispatch_mode():
    with Passes():
        torch.ones(2) + 1


def meta_add():
    torch.empty(2, device="meta") + 1


def grad_with_gradient():
    x = torch.ones(2, requires_grad=True)
    torch.autograd.grad(x * 2, x, torch.ones(2))


def backward_of_sum():
    (torch.ones(2, requires_grad=True) * 2).sum().backward()


before = set(sys.modules)
globals()[sys.argv[1]]()
new = set(sys.modules) - before
print(*(name for name in ("sympy", "torch._dynamo", "triton") if name in new), len(new) > 100)
PY
seen=""
for what in dispatch_mode meta_add grad_with_gradient backward_of_sum; do
  seen+="$what: $("$dir/venv/bin/python" "$dir/first.py" "$what"); "
done
echo "$seen"
expected="dispatch_mode: sympy torch._dynamo triton True; meta_add: sympy torch._dynamo triton True; "
expected+="grad_with_gradient: sympy True; backward_of_sum: False; "
[ "$seen" = "$expected" ]
