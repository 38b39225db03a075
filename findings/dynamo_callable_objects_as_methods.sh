#!/usr/bin/env bash
# PyTorch 2.13.0: a decorator that returns a callable object, under torch.compile(fullgraph=True).
#
# Guess: what compiles as a method compiles under @staticmethod and @classmethod too, and through super().
# Seen: of one decorator class with __get__ and __call__, a method, a function, an attribute of a module and a static
#       method reached through the class compile. The same static method reached through an instance, a class method
#       reached either way, and a method reached through super() are graph breaks, each with another reason. In eager
#       mode all of them run. A decorator that returns a plain function compiles everywhere.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cat > "$dir/run.py" <<'PY'
from functools import partial, update_wrapper, wraps

import torch
from torch.compiler import is_dynamo_compiling


class as_object:
    def __init__(self, function):
        update_wrapper(self, function)
        self.function = function

    def __get__(self, instance, owner=None):
        if instance is None:
            return self
        return partial(self.function if is_dynamo_compiling() else self, instance)

    def __call__(self, *args):
        return self.function(*args)


def as_function(function):
    @wraps(function)
    def call(*args):
        return function(*args)

    return call


def calls(decorator):
    class Parent:
        @decorator
        def method(self, x):
            return x + 1

    class Child(Parent):
        @decorator
        def method(self, x):
            return super().method(x) * 2

        @decorator
        def plain(self, x):
            return x * 2

        @staticmethod
        @decorator
        def static(x):
            return x * 2

        @classmethod
        @decorator
        def of_class(cls, x):
            return x * 2

    return {
        "method": lambda x: Child().plain(x),
        "static, class": lambda x: Child.static(x),
        "static, instance": lambda x: Child().static(x),
        "class, class": lambda x: Child.of_class(x),
        "class, instance": lambda x: Child().of_class(x),
        "super": lambda x: Child().method(x),
    }


def compiles(call):
    torch.compiler.reset()
    x = torch.ones(3)
    try:
        return bool(torch.equal(torch.compile(call, backend="eager", fullgraph=True)(x), call(x)))
    except torch._dynamo.exc.Unsupported:
        return False


found = {d.__name__: {name: compiles(call) for name, call in calls(d).items()} for d in (as_object, as_function)}
print("torch", torch.__version__, found)
assert [name for name, ok in found["as_object"].items() if ok] == ["method", "static, class"]
assert all(found["as_function"].values())
PY
"$dir/venv/bin/python" -W ignore "$dir/run.py"
