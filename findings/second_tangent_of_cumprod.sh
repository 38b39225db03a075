#!/usr/bin/env bash
# PyTorch 2.13.0, CPU, float64: the second derivatives of a product by cumprod, where one factor is 0.
#
# Guess: of x·y·z at (2, 0, 3) the Hessian is that of prod, however it is composed: forward and reverse mode are exact.
# Seen: reverse over reverse and forward over reverse are right. jacfwd of jacfwd lacks two entries, so the matrix is
#       not symmetric, and nothing is raised; jacrev of jacfwd is nan throughout. The first derivatives are right by
#       both modes, and the second ones too where no factor is 0.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cat >"$dir/run.py" <<'PY'
import torch
from torch.func import hessian, jacfwd, jacrev


def product(x):
    return torch.cumprod(x, 0)[-1]


x = torch.tensor([2.0, 0.0, 3.0], dtype=torch.float64)
right = [[0, 3, 0], [3, 0, 2], [0, 2, 0]]
assert jacfwd(jacfwd(lambda x: x.prod()))(x).tolist() == right
assert jacfwd(product)(x).tolist() == jacrev(product)(x).tolist() == [0, 6, 0]
assert hessian(product)(x).tolist() == jacrev(jacrev(product))(x).tolist() == right

forward_twice, reverse_of_forward = jacfwd(jacfwd(product))(x), jacrev(jacfwd(product))(x)
print("torch", torch.__version__)
print("jacfwd of jacfwd:", forward_twice.tolist())
print("jacrev of jacfwd:", reverse_of_forward.tolist())
assert forward_twice.tolist() == [[0, 0, 0], [3, 0, 2], [0, 0, 0]]
assert reverse_of_forward.isnan().all()
no_zero = torch.tensor([2.0, 5.0, 3.0], dtype=torch.float64)
torch.testing.assert_close(jacfwd(jacfwd(product))(no_zero), hessian(product)(no_zero))
PY
"$dir/venv/bin/python" -W ignore "$dir/run.py"
