#!/usr/bin/env bash
# PyTorch 2.13.0 and ml_dtypes 0.6.0: every bfloat16 number, and some more, cast to five kinds of float8.
#
# Guess: both give the same number, or both nan: the formats say what they hold, and both round to even.
# Seen: of e5m2, e4m3fnuz and e5m2fnuz they do. Above 464 torch gives 448 as e4m3fn, its largest, where ml_dtypes gives
#       nan. As e8m0fnu, which holds powers of 2 and no sign, ml_dtypes gives nan for 0 and for what is negative; torch
#       drops the sign, so -3 becomes 4, and takes the smallest power for 0.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 ml_dtypes==0.6.0 numpy==2.4.6
cat >"$dir/run.py" <<'PY'
import ml_dtypes
import numpy as np
import torch

patterns = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
x = torch.cat([patterns, torch.randn(2**16, generator=torch.Generator().manual_seed(0)) * 300])
print("torch", torch.__version__, "ml_dtypes", ml_dtypes.__version__)
differ = {}
for name in ("float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3fn", "float8_e8m0fnu"):
    by_torch = x.to(getattr(torch, name)).float().numpy()
    by_ml_dtypes = x.numpy().astype(getattr(ml_dtypes, name)).astype(np.float32)
    at = (by_torch != by_ml_dtypes) & ~(np.isnan(by_torch) & np.isnan(by_ml_dtypes))
    differ[name] = (x.numpy()[at], by_torch[at], by_ml_dtypes[at])
    print(name, "differs for", int(at.sum()), "of", len(x))
assert not any(len(differ[name][0]) for name in ("float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"))

numbers, by_torch, by_ml_dtypes = differ["float8_e4m3fn"]
assert (np.abs(numbers) > 464).all() and (np.abs(by_torch) == 448).all() and np.isnan(by_ml_dtypes).all()
numbers, by_torch, by_ml_dtypes = differ["float8_e8m0fnu"]
assert (numbers <= 0).all() and (by_torch[numbers == 0] == 2.0**-127).all() and np.isnan(by_ml_dtypes).all()
assert torch.tensor(-3.0).to(torch.float8_e8m0fnu).float().item() == 4
PY
"$dir/venv/bin/python" -W ignore "$dir/run.py"
