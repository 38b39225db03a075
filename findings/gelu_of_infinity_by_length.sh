#!/usr/bin/env bash
# PyTorch 2.13.0, x86-64 CPU: gelu of inf in float32, by the number of elements.
#
# Guess: gelu(inf) is inf, as x·Φ(x) says, whatever else is in the tensor, and whichever instructions the CPU has.
# Seen: it is inf for one element and in float64, and nan in every float32 tensor of four elements and more: the code for
#       vectors multiplies infinity by 0. So it is with ATEN_CPU_CAPABILITY=default, avx2 and avx512 alike; the form by
#       tanh has inf throughout.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
for capability in default avx2; do
  ATEN_CPU_CAPABILITY=$capability "$dir/venv/bin/python" - <<'PY'
import torch
from torch.nn.functional import gelu

found = {n: gelu(torch.full((n,), torch.inf))[0].item() for n in (1, 4, 32)}
print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability(), found)
assert found[1] == torch.inf
assert all(found[n] != found[n] for n in (4, 32))
assert gelu(torch.full((32,), torch.inf, dtype=torch.float64)).isinf().all()
assert gelu(torch.full((32,), torch.inf), approximate="tanh").isinf().all()
PY
done
