#!/usr/bin/env bash
# PyTorch 2.13.0: gradients through a module that torch.export has exported and decomposed.
#
# Guess: what the module does to its gradient is exported with it, or export refuses: a Function with its own backward
#        (rounding that passes the gradient on), detach(), no_grad, a hook on a tensor.
# Seen: the exported module can be trained and says nothing, with other gradients. The Function is replaced by what its
#       forward computes, so rounding has gradient 0, and the hook is dropped. detach() and no_grad are kept by export
#       itself, and dropped by run_decompositions(), so that 1 becomes 3; inference_mode is dropped by export already.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cat >"$dir/run.py" <<'PY'
import torch
from torch.export import export


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.round()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return g


class Rounds(torch.nn.Module):
    def forward(self, x):
        return Rounded.apply(x * 1.0)


class Hooks(torch.nn.Module):
    def forward(self, x):
        z = x * 1.0
        if z.requires_grad:
            z.register_hook(lambda g: g * 10)
        return z


class Detaches(torch.nn.Module):
    def forward(self, x):
        return x + (x * 2).detach()


class NoGrad(torch.nn.Module):
    def forward(self, x):
        with torch.no_grad():
            y = x * 2
        return x + y


class Infers(torch.nn.Module):
    def forward(self, x):
        with torch.inference_mode():
            y = x * 2
        return x + y.clone()


def gradient(module):
    x = torch.tensor([0.3, 1.7], requires_grad=True)
    return torch.autograd.grad(module(x).sum(), x)[0][0].item()


print("torch", torch.__version__, "eager, exported, decomposed")
seen = {}
for module in (Rounds(), Hooks(), Detaches(), NoGrad(), Infers()):
    exported = export(module, (torch.tensor([0.3, 1.7], requires_grad=True),))
    decomposed = exported.run_decompositions()
    name = type(module).__name__
    seen[name] = [gradient(module), gradient(exported.module()), gradient(decomposed.module())]
    print(f"{name:9}", *seen[name])
assert seen == {
    "Rounds": [1, 0, 0],
    "Hooks": [10, 1, 1],
    "Detaches": [1, 1, 3],
    "NoGrad": [1, 1, 3],
    "Infers": [1, 3, 3],
}
PY
"$dir/venv/bin/python" -W ignore "$dir/run.py"
