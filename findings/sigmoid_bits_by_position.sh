#!/usr/bin/env bash
# PyTorch 2.13.0, CPU, x86-64, by AVX2: whether the bits of an elementwise function depend on where an element lies.
#
# Guess: no: equal numbers in one contiguous tensor have equal results, wherever they are.
# Seen: in a tensor of 29 float32 that are one number, sigmoid has other bits from position 16 on for 42 of 2,000
#       numbers, and a power of 1.7 for 829; exp, tanh, log and rsqrt have not for any. Two vectors of 8 are computed at
#       once, and what is left by another function. So a value that is computed once for a whole tensor and once more
#       for a part of it need not be equal, and a gradient that looks for the elements which are the maximum misses them.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=1 "$dir/venv/bin/python" - <<'PY'
import torch

FUNCTIONS = {
    "sigmoid": torch.sigmoid,
    "pow": lambda x: torch.pow(x, 1.7),
    "exp": torch.exp,
    "tanh": torch.tanh,
    "log": torch.log,
    "rsqrt": torch.rsqrt,
}
numbers = torch.randn(2000, generator=torch.Generator().manual_seed(0)).abs()
counts, positions = {}, set()
for name, function in FUNCTIONS.items():
    z = torch.stack([function(number.repeat(29)) for number in numbers])
    differs = z != z[:, :1]
    counts[name] = int(differs.any(1).sum())
    positions |= set(differs.nonzero()[:, 1].tolist())
print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability(), counts, sorted(positions))
assert counts["sigmoid"] and counts["pow"]
assert not any(counts[name] for name in ("exp", "tanh", "log", "rsqrt"))
assert positions == set(range(16, 29))
PY
