#!/usr/bin/env bash
# PyTorch 2.13.0: the dtype of a function of a number (0-dim, float64) and a float32 vector, singly and under vmap.
#
# Guess: float32 both ways. To a function under vmap each number has 0 dimensions, and such a one does not promote a
#        vector; the batching rules take care of that.
# Seen: those of add, mul, maximum, pow and atan2 do. where, clamp, addcmul and addcdiv give float64, but float32 again
#       where only the vector is batched, and lerp raises. So the dtype, or whether it runs at all, depends on in_dims.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cat >"$dir/run.py" <<'PY'
import torch
from torch import vmap

FUNCTIONS = {
    "add": torch.add,
    "mul": torch.mul,
    "maximum": torch.maximum,
    "pow": torch.pow,
    "atan2": torch.atan2,
    "where": lambda x, y: torch.where(y > 0, x, y),
    "clamp": lambda x, y: torch.clamp(y, min=x),
    "addcmul": lambda x, y: torch.addcmul(y, x, y),
    "addcdiv": lambda x, y: torch.addcdiv(y, y, x),
    "lerp": lambda x, y: torch.lerp(y, y, x),
}
numbers, vectors = torch.ones(3, dtype=torch.float64), torch.ones(3, 2)


def dtype(call):
    try:
        return str(call().dtype)[6:]
    except RuntimeError:
        return "raises"


print("torch", torch.__version__, "one by one, both batched, the number alone, the vector alone")
expected = {"lerp": "raises"} | dict.fromkeys(("where", "clamp", "addcmul", "addcdiv"), "float64")
for name, function in FUNCTIONS.items():
    single = dtype(lambda: function(numbers[0], vectors[0]))
    both = dtype(lambda: vmap(function)(numbers, vectors))
    number = dtype(lambda: vmap(function, (0, None))(numbers, vectors[0]))
    vector = dtype(lambda: vmap(function, (None, 0))(numbers[0], vectors))
    print(f"{name:8}", single, both, number, vector)
    assert single == vector == "float32"
    assert both == number == expected.get(name, "float32")
PY
"$dir/venv/bin/python" -W ignore "$dir/run.py"
