#!/usr/bin/env bash
# PyTorch 2.13.0: what leaves torch of a number that carries a tangent, beside one that requires grad.
#
# Guess: what refuses a tensor that requires grad, lest its derivative be lost, refuses one with a tangent as well.
# Seen: numpy(), a NumPy function, DLPack and deepcopy take the value of a dual tensor and drop its tangent.
#       torch.func.jvp raises there, but for another reason: its tensors have no memory to read. So make_dual and jvp,
#       two ways to the same derivative, answer a step through NumPy with a tangent that lacks a part, and with an
#       error.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cat >"$dir/run.py" <<'PY'
import copy

import numpy as np
import torch
from torch.autograd import forward_ad

EXITS = {
    "numpy": lambda x: torch.from_numpy(x.numpy().copy()),
    "np.exp": lambda x: torch.as_tensor(np.exp(x)),
    "dlpack": torch.from_dlpack,
    "deepcopy": copy.deepcopy,
}


def leaves(call, x):
    try:
        call(x)
    except (BufferError, RuntimeError):
        return "raises"
    return "passes"


print("torch", torch.__version__)
seen = {}
with forward_ad.dual_level():
    dual = forward_ad.make_dual(torch.ones(1), torch.ones(1))
    for name, call in EXITS.items():
        tangent = forward_ad.unpack_dual(call(dual)).tangent
        seen[name] = (leaves(call, torch.ones(1, requires_grad=True)), "keeps" if tangent is not None else "drops")
print("requires grad, dual:", seen)
ones = (torch.ones(1),)
assert all(leaves(lambda x: torch.func.jvp(call, x, x), ones) == "raises" for call in EXITS.values())
assert seen == {name: ("raises", "drops") for name in ("numpy", "np.exp", "dlpack")} | {"deepcopy": ("passes", "drops")}
PY
"$dir/venv/bin/python" -W ignore "$dir/run.py"
