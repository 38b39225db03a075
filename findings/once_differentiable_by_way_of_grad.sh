#!/usr/bin/env bash
# PyTorch 2.13.0: a second derivative through an autograd.Function whose backward is @once_differentiable.
#
# Guess: it raises, whichever way it is asked for, as the decorator promises.
# Seen: only backward() raises, and only where the gradient that comes in depends on x. torch.autograd.grad goes to x
#       and to nothing else, so it leaves out the node that would raise: of x³·x it gives 12 where 48 is right, and so
#       do torch.func.grad of torch.func.grad and autograd.functional.hessian. Of x³ + x², backward() too gives 2, not
#       14.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cat >"$dir/run.py" <<'PY'
import torch
from torch.autograd.function import once_differentiable


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x * x * g


def first(function):
    x = torch.tensor(2.0, requires_grad=True)
    return x, torch.autograd.grad(function(x), x, create_graph=True)[0]


def by_backward(function):
    x, dx = first(function)
    dx.backward()
    return x.grad.item()


def by_grad(function):
    x, dx = first(function)
    return torch.autograd.grad(dx, x)[0].item()


def by_func(function):
    return torch.func.grad(torch.func.grad(function))(torch.tensor(2.0)).item()


def by_hessian(function):
    return torch.autograd.functional.hessian(function, torch.tensor(2.0)).item()


def outcome(way, function):
    try:
        return way(function)
    except RuntimeError as error:
        return "raises" if "once_differentiable" in str(error) else str(error)


print("torch", torch.__version__)
functions = {
    "x³·x, right is 48": lambda x: Cube.apply(x) * x,
    "x³ + x², right is 14": lambda x: Cube.apply(x) + x * x,
}
seen = {}
for name, function in functions.items():
    for way in (by_backward, by_grad, by_func, by_hessian):
        seen.setdefault(name, []).append(outcome(way, function))
    print(name, "backward, grad, func, hessian:", seen[name])
assert list(seen.values()) == [["raises", 12, 12, 12], [2, 2, 2, 2]]
PY
"$dir/venv/bin/python" -W ignore "$dir/run.py"
