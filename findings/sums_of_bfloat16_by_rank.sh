#!/usr/bin/env bash
# PyTorch 2.13.0, CPU: what a thousand bfloat16 ones add up to, by the operator that adds them to one place.
#
# Guess: sum and cumsum keep a float32 for the total and give 1000. What adds in place, element by element, stays at
#        256, where bfloat16 cannot add 1 any more; index_add as scatter_add, the gradient of gather as that of
#        indexing.
# Seen: scatter_add gives 1000 and index_add 256, but 1000 for rows of 16 numbers in place of single ones. Of the
#       gradients of three ways to read one element a thousand times, gather's is 1000, those of indexing and of
#       index_select are 256. embedding_bag sums to 1000, the gradients of embedding and of embedding_bag to 256.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cat >"$dir/run.py" <<'PY'
import torch
from torch.nn.functional import embedding, embedding_bag

N = 1000
ones, rows = torch.ones(N, dtype=torch.bfloat16), torch.ones(N, 16, dtype=torch.bfloat16)
index = torch.zeros(N, dtype=torch.long)


def gradient(read, *shape):
    x = torch.zeros(shape, dtype=torch.bfloat16, requires_grad=True)
    return torch.autograd.grad(read(x).sum(), x)[0]


totals = {
    "sum": ones.sum(),
    "cumsum": ones.cumsum(0)[-1],
    "scatter_add": ones.new_zeros(1).scatter_add(0, index, ones),
    "scatter_add, rows": rows.new_zeros(1, 16).scatter_add(0, index[:, None].expand(N, 16), rows),
    "index_add": ones.new_zeros(1).index_add(0, index, ones),
    "index_add, rows": rows.new_zeros(1, 16).index_add(0, index, rows),
    "index_put": ones.new_zeros(1).index_put((index,), ones, accumulate=True),
    "embedding_bag": embedding_bag(index[None], ones.new_ones(1, 1), mode="sum"),
    "gradient of gather": gradient(lambda x: x.gather(0, index), 1),
    "gradient of expand": gradient(lambda x: x.expand(N), 1),
    "gradient of indexing": gradient(lambda x: x[index], 1),
    "gradient of index_select": gradient(lambda x: x.index_select(0, index), 1),
    "gradient of embedding": gradient(lambda x: embedding(index, x), 1, 1),
    "gradient of embedding_bag": gradient(lambda x: embedding_bag(index[None], x, mode="sum"), 1, 1),
}
seen = {name: total.unique().item() for name, total in totals.items()}
print("torch", torch.__version__, seen)
lost = {"index_add", "index_put", "gradient of embedding", "gradient of embedding_bag"}
lost |= {"gradient of indexing", "gradient of index_select"}
assert {name for name, total in seen.items() if total == 256} == lost
assert all(total == 1000 for name, total in seen.items() if name not in lost)
PY
"$dir/venv/bin/python" -W ignore "$dir/run.py"
