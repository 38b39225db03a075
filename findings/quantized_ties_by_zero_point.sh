#!/usr/bin/env bash
# PyTorch 2.13.0, CPU, x86-64: fake quantization beside the quantization that it simulates, halfway between two steps.
#
# Guess: fake_quantize_per_tensor_affine is dequantize of quantize_per_tensor, bit for bit: that is what it is for.
# Seen: so it is where the zero point is even. Where it is odd, every tie goes the other way: the real one rounds
#       x/scale + zero_point to even, the fake one x/scale. quantized_decomposed, the operators of exported programs,
#       goes with the fake one. So a network trained by the one and run by the other differs in every tie.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cat >"$dir/run.py" <<'PY'
import torch
from torch.ao.quantization.fx import _decomposed  # noqa: F401, registers quantized_decomposed

x = torch.arange(-8, 8) + 0.5
print("torch", torch.__version__, "numbers rounded otherwise than by quantize_per_tensor, of", len(x))
seen = []
for zero_point in range(4):
    real = torch.quantize_per_tensor(x, 1.0, zero_point, torch.qint8)
    fake = torch.fake_quantize_per_tensor_affine(x, 1.0, zero_point, -128, 127)
    exported = torch.ops.quantized_decomposed.quantize_per_tensor(x, 1.0, zero_point, -128, 127, torch.int8)
    differs = int((fake != real.dequantize()).sum()), int((exported != real.int_repr()).sum())
    seen.append(differs)
    print("zero point", zero_point, "fake", differs[0], "quantized_decomposed", differs[1])
assert seen == [(0, 0), (16, 16), (0, 0), (16, 16)]
PY
"$dir/venv/bin/python" -W ignore "$dir/run.py"
