#!/usr/bin/env bash
# PyTorch 2.13.0, NumPy 2.4.6 and apache-tvm-ffi 0.1.15.post2: tensors whose memory is not their values, by DLPack.
#
# Guess: torch raises for all that DLPack cannot say: a lazy conjugate, a lazily negated tensor, one that requires
#        grad. tvm-ffi exchanges tensors by DLPack, so it raises, too.
# Seen: torch raises for the first and the third. The imaginary part of a lazy conjugate reaches NumPy, or torch itself
#       by torch.from_dlpack, with the wrong sign. tvm-ffi asks torch another way, which checks nothing: its functions
#       get x.conj() as x, and what comes back of a tensor that requires grad does not require it.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 apache-tvm-ffi==0.1.15.post2 numpy==2.4.6
cat >"$dir/run.py" <<'PY'
import numpy as np
import torch
import tvm_ffi


def outcome(export, x):
    try:
        z = export(x)
    except BufferError:
        return "raises"
    return z.tolist(), getattr(z, "requires_grad", False)


x = torch.tensor([1 + 2j, 3 + 4j])
tensors = {"conjugate": x.conj(), "negative": x.conj().imag, "requires grad": torch.ones(2, requires_grad=True)}
ways = (np.from_dlpack, torch.from_dlpack, tvm_ffi.convert(lambda x: x))
print("torch", torch.__version__, "numpy", np.__version__, "tvm-ffi", tvm_ffi.__version__)
seen = {}
for name, tensor in tensors.items():
    seen[name] = [outcome(way, tensor) for way in ways]
    print(f"{name} is {tensor.tolist()}; NumPy, torch, tvm-ffi:", *seen[name])
assert x.conj().imag.tolist() == [-2, -4]
assert seen["conjugate"][0] == "raises" and seen["conjugate"][2] == (x.tolist(), False)
assert seen["negative"] == [([2, 4], False)] * 3
assert seen["requires grad"][0] == "raises" and seen["requires grad"][2] == ([1, 1], False)
PY
"$dir/venv/bin/python" -W ignore "$dir/run.py"
