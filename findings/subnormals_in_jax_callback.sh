#!/usr/bin/env bash
# JAX 0.10.2 and PyTorch 2.13.0, CPU, x86-64: torch's arithmetic inside a callback of JAX.
#
# Guess: torch computes what it always does: it is another library, and the callback is plain Python on the host.
# Seen: 1e-40 / 2 is 5e-41 before and after, and 0 inside jax.pure_callback, jitted or not, and inside
#       jax.debug.callback; so it is for NumPy, and for torch's float64. XLA switches the CPU to a mode that takes
#       subnormal numbers for 0, and calls back in that mode. So a reference computed in a callback is not that
#       computed beside it.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$dir/run.py" <<'PY'
import jax
import jax.numpy as jnp
import numpy as np
import torch

found = {}


def note(where):
    found[where] = [
        (torch.full((4,), 1e-40) / 2)[0].item() > 0,
        (torch.full((4,), 1e-310, dtype=torch.float64) / 2)[0].item() > 0,
        bool((np.full(4, 1e-40, np.float32) / np.float32(2))[0] > 0),
    ]


def calls_back(where):
    def callback(x):
        note(where)
        return np.asarray(x)

    return lambda x: jax.pure_callback(callback, jax.ShapeDtypeStruct((4,), jnp.float32), x)


def calls_back_to_print(x):
    jax.debug.callback(lambda x: note("debug.callback"), x)
    return x * 2


x = jnp.ones(4)
note("before")
calls_back("pure_callback")(x).block_until_ready()
jax.jit(calls_back("pure_callback, jitted"))(x).block_until_ready()
jax.jit(calls_back_to_print)(x).block_until_ready()
jax.effects_barrier()
note("after")
print("jax", jax.__version__, "torch", torch.__version__)
print("half of torch's 1e-40, of its 1e-310, of NumPy's 1e-40 is above 0:", found)
assert found.pop("before") == found.pop("after") == [True] * 3
assert len(found) == 3 and not any(any(halves) for halves in found.values())
PY
"$dir/venv/bin/python" -W ignore "$dir/run.py"
