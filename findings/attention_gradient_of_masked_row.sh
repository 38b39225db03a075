#!/usr/bin/env bash
# PyTorch 2.13.0, CPU: the gradient of attention whose mask adds the least float32 (finfo.min) to every key of a query.
#
# Guess: scaled_dot_product_attention's backends agree but for rounding. Such a query gets the mean of the values, and
#        each of n values 1/n of the query's gradient.
# Seen: the results agree. Of the gradient, flash attention gives each value the whole, n times what the plain backend
#       gives: it computes the weights anew from the logarithm of their sum, and beside -3.4e38 the log of n is lost in
#       rounding. A mask of -inf gives 0 by both. Model code often pads with finfo.min, to avoid nan.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cat >"$dir/run.py" <<'PY'
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

KEYS = 8
generator = torch.Generator().manual_seed(0)
query, key, value = (torch.randn(1, 1, n, 4, generator=generator) for n in (1, KEYS, KEYS))


def outcome(backend, masked):
    v = value.clone().requires_grad_()
    with sdpa_kernel(backend):
        z = scaled_dot_product_attention(query, key, v, attn_mask=torch.full((1, KEYS), masked))
    return z.detach(), torch.autograd.grad(z.sum(), v)[0]


print("torch", torch.__version__)
for masked in (torch.finfo(torch.float32).min, -torch.inf):
    plain, plain_gradient = outcome(SDPBackend.MATH, masked)
    flash, flash_gradient = outcome(SDPBackend.FLASH_ATTENTION, masked)
    print(masked, "plain", plain_gradient.unique().tolist(), "flash", flash_gradient.unique().tolist())
    torch.testing.assert_close(plain, flash)
    if masked == -torch.inf:
        assert not plain_gradient.any() and not flash_gradient.any()
    else:
        torch.testing.assert_close(plain, value.mean(2, keepdim=True))
        torch.testing.assert_close(plain_gradient, torch.full_like(value, 1 / KEYS))
        torch.testing.assert_close(flash_gradient, torch.ones_like(value))
PY
"$dir/venv/bin/python" -W ignore "$dir/run.py"
