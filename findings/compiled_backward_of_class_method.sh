#!/usr/bin/env bash
# PyTorch 2.13.0: an autograd.Function whose forward or backward is a class method, compiled.
#
# Guess: eager autograd finds both by attribute, so a class method, which can read attributes of the subclass, is as good
#        as a static method for torch.compile and compiled autograd, too.
# Seen: in eager mode it is. torch.compile of a call refuses a class method, of either, as arguments that do not bind.
#       Compiled autograd takes a forward that is one, and of a backward raises "Expected FunctionType, got method".
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cat > "$dir/run.py" <<'PY'
import torch
from torch._dynamo import compiled_autograd
from torch.autograd import Function


class BothStatic(Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return g * 2


class BackwardOfClass(Function):
    slope = 2

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @classmethod
    def backward(cls, ctx, g):
        return g * cls.slope


class ForwardOfClass(Function):
    slope = 2

    @classmethod
    def forward(cls, ctx, x):
        return x * cls.slope

    @staticmethod
    def backward(ctx, g):
        return g * 2


def eager(function, x):
    function.apply(x).sum().backward()


def compiled_call(function, x):
    torch.compile(lambda x: function.apply(x).sum(), backend="eager", fullgraph=True)(x).backward()


def compiled_backward(function, x):
    z = function.apply(x).sum()
    with compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
        z.backward()


def outcome(way, function):
    torch.compiler.reset()
    x = torch.ones(3, requires_grad=True)
    try:
        way(function, x)
    except Exception as error:
        return str(error).splitlines()[0]
    return x.grad.tolist()


print("torch", torch.__version__)
seen = {}
for function in (BothStatic, BackwardOfClass, ForwardOfClass):
    for way in (eager, compiled_call, compiled_backward):
        seen[function.__name__, way.__name__] = outcome(way, function)
        print(f"{function.__name__:16}{way.__name__:18}", seen[function.__name__, way.__name__])
right = {key for key, value in seen.items() if value == [2.0, 2.0, 2.0]}
assert right == {(function, "eager") for function, _ in seen} | {
    ("BothStatic", "compiled_call"),
    ("BothStatic", "compiled_backward"),
    ("ForwardOfClass", "compiled_backward"),
}
assert seen["BackwardOfClass", "compiled_backward"].startswith("Expected FunctionType, got")
assert all("bind arguments" in seen[name, "compiled_call"] for name in ("BackwardOfClass", "ForwardOfClass"))
PY
"$dir/venv/bin/python" -W ignore "$dir/run.py"
