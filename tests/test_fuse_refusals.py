"""What cannot be traced is refused, by an error that names the line and says what would help."""

from __future__ import annotations

from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch

import customops
from customops import fuse
from customops.fusion.trace import Traces

from .conftest import KERNELS
from .test_fuse_states import PassDispatch, PassFunctions, default_dtype


def _branch(x):
    return x if customops.sum(x) > 0 else -x


def _truth(x):
    while customops.sum(x):
        x = x - 1
    return x


def _item(x):
    return x * customops.sum(x).item()


def _float(x):
    return x * float(customops.sum(x))


def _index(x):
    return x[[0, 1]] * 2


def _rounds(x):
    return torch.floor(x * 2)


def _scan(x):
    return torch.cumsum(x, 0)


def _random(x):
    return torch.nn.functional.dropout(x, 0.5)


def _gather(x):
    return x.gather(0, x)


def _method_in_place(x):
    return x.add_(1)


def _function_in_place(x):
    return torch.nn.functional.relu(x, inplace=True)


def _property(x):
    return x.grad * 2


def _integer(x):
    return x.long() * x


def _elsewhere(x):
    return x.to("meta") * 2


def _other_shape(x):
    return x * x.new_zeros(7)


def _matrix(x):
    return x @ x


def _augmented(x):
    x += 1
    return x


def _twin(x):
    return customops.exp_(x)


def _out(x):
    return customops.exp(x, out=x)


def _no_grad(x):
    with torch.no_grad():
        return customops.exp(x)


def _none(x):
    return ()


def _rounding(x):
    return customops.div(x, 2, rounding_mode="floor")


def _floor(x):
    return 2 // x


def _alpha(x):
    return customops.add(x, x, alpha=customops.sum(x))


class Cubed(torch.autograd.Function):
    """The operator of x³, with a derivative of its own."""

    @staticmethod
    def forward(ctx, x):
        """Return the cube."""
        return x**3


def _own_gradient(x):
    return Cubed.apply(x) * 2


def _number(x):
    return 3


def _nothing(x):
    customops.exp(x)


def _dictionary(x):
    return {"logits": x * 2}


REFUSED = {
    _branch: ("customops.sum(x) > 0", "maximum"),
    _truth: ("while customops.sum(x)", "branch on shapes"),
    _item: (".item()", "argument"),
    _float: ("float(customops.sum(x))", "argument"),
    _index: (
        "x[[0, 1]] * 2",
        "an index of type list cannot be traced, only ints, slices, None and ...; do that outside",
    ),
    _rounds: ("torch.floor(x * 2)", "torch.floor cannot be traced, as it rounds to whole numbers; do that outside"),
    _scan: ("torch.cumsum(x, 0)", "torch.cumsum cannot be traced, as it adds up along an axis"),
    _random: ("dropout(x, 0.5)", "dropout cannot be traced, as it takes random numbers; do that outside the function"),
    _gather: ("x.gather(0, x)", "Tensor.gather() cannot be traced, as it reads or writes elements by index"),
    _method_in_place: ("x.add_(1)", "as it writes over a tensor; write x = x.add(...)"),
    _function_in_place: (
        "inplace=True",
        "with inplace= cannot be traced, as it writes over a tensor; leave it out",
    ),
    _property: ("x.grad * 2", "Tensor.grad cannot be traced; do that outside the function"),
    _integer: ("x.long()", "a cast to torch.int64 cannot be traced"),
    _elsewhere: ('x.to("meta")', "a move to meta cannot be traced; move the tensor before the call"),
    _other_shape: ("x.new_zeros(7)", "use torch.full_like, or a number"),
    _matrix: ("x @ x", "@ of a traced tensor is not supported, as it is a matrix product; do that outside"),
    _augmented: ("x += 1", "write x = x + y"),
    _twin: ("customops.exp_(x)", "use customops.exp"),
    _out: ("out=x", "leave it out"),
    _rounding: ('rounding_mode="floor"', "outside the function"),
    _floor: ("2 // x", "outside the function"),
    _alpha: ("alpha=customops.sum(x)", "pass a number"),
    _no_grad: ("customops.exp(x)", "split the function"),
    _own_gradient: ("Cubed.apply(x)", "an autograd.Function cannot be traced, as its gradient is its own"),
    _none: ("_none", "got ()"),
    _number: ("_number", "got 3"),
    _nothing: ("_nothing", "got None"),
    _dictionary: ("_dictionary", "got {'logits': <traced tensor>}"),
}


@pytest.mark.parametrize("function", REFUSED, ids=lambda f: f.__name__)
def test_what_cannot_be_traced_is_an_error_that_names_the_line(function, device):
    line, instead = REFUSED[function]
    fused = fuse(function)
    for _ in range(2):  # nothing is remembered of the first
        with pytest.raises(TypeError, match=r"^fuse: ") as error:
            fused(torch.ones(3, 4, device=device))
        assert line in str(error.value)
        assert instead in str(error.value)
        if function not in (_number, _none, _nothing, _dictionary):
            first = function.__code__.co_firstlineno
            assert any(f"{__file__}:{n}:" in str(error.value) for n in range(first, first + 4))


def switched(mode, function=customops.exp):
    """Return a function that applies an operator under a mode of its own."""

    def run(x):
        with mode():
            return function(x)

    return run


def _left_behind(x):
    z = customops.exp(x)
    torch.set_grad_enabled(not torch.is_grad_enabled())
    return z


@contextmanager
def not_deterministic():
    """Switch deterministic algorithms off, which the tests have on."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(not before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=True)


SWITCHED = {
    "grad mode": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.float16),
    "default dtype": lambda: default_dtype(torch.float64),
    "default device or function mode": lambda: torch.device("meta"),
    "function mode": PassFunctions,
    "dispatch mode": PassDispatch,
    "deterministic mode": not_deterministic,
    "saved-tensor hooks": torch.autograd.graph.save_on_cpu,
    "backend": lambda: customops.backend("torch"),
    "forward mode": torch.autograd.forward_ad.dual_level,
}


@pytest.mark.parametrize("name", SWITCHED)
def test_a_mode_switched_inside_is_refused_by_name(name, device):
    """Operators heed it where they are called; kernels run later, under that of the caller."""
    x = torch.ones(3, device=device)
    for function in (customops.exp, lambda x: customops.exp(x) if x.dtype == torch.float32 else x):
        with pytest.raises(TypeError, match=rf"^fuse: .*a change of .*{name} cannot be traced; split the function"):
            fuse(switched(SWITCHED[name], function))(x)


@pytest.mark.parametrize("inside", [False, torch.float16])
def test_autocast_changed_inside_is_refused(inside, device):
    off = lambda: torch.autocast("cpu", torch.float16 if inside else torch.bfloat16, enabled=bool(inside))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match="a change of autocast"):
        fuse(switched(off))(torch.ones(3, device=device))


def test_a_mode_left_behind_is_refused(device):
    try:
        with pytest.raises(TypeError, match="_left_behind: a change of grad mode, which it leaves behind"):
            fuse(_left_behind)(torch.ones(3, device=device))
    finally:
        torch.set_grad_enabled(True)


@pytest.mark.parametrize("name", ["grad", "vmap", "jvp"])
def test_a_transform_inside_is_refused(name, device):
    inside = {
        "grad": torch.func.grad(lambda x: customops.sum(customops.exp(x))),
        "vmap": torch.vmap(customops.exp),
        "jvp": lambda x: torch.func.jvp(customops.exp, (x,), (x,))[1],
    }
    with pytest.raises(TypeError, match=r"^fuse: .*(transform the fused function instead|a change of forward mode)"):
        fuse(inside[name])(torch.ones(3, device=device))


@pytest.mark.parametrize("back", [lambda x, y: y * x, lambda x, y: y], ids=["used", "returned"])
def test_a_value_of_another_call_is_refused(device, back):
    before = []

    def function(x):
        before.append(customops.exp(x))
        return back(x, before[0])

    fused = fuse(function)
    if KERNELS:
        fused(torch.zeros(3, device=device))
    else:
        x = torch.zeros(3)
        Traces().trace(lambda x: before.append(x) or customops.exp(x), [x], {}, [x], True)
    with pytest.raises(TypeError, match="a value of another call"):
        fused(torch.zeros(3, device=device, dtype=torch.float64))


@pytest.mark.parametrize("wrap", [staticmethod, classmethod])
def test_what_is_no_function_is_refused(wrap):
    with pytest.raises(TypeError, match="expected a function"):
        fuse(wrap(_number))
    with pytest.raises(TypeError, match="expected a function, got 3"):
        fuse(3)


def test_a_folder_called_torch_is_not_torchs(device, tmp_path):
    (tmp_path / "torch_models" / "torch").mkdir(parents=True)
    file = tmp_path / "torch_models" / "torch" / "layers.py"
    file.write_text("def f(x):\n    return x.cumsum(0)\n")
    spec = spec_from_file_location("layers", file)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(TypeError, match=r"layers\.py:2"):
        fuse(module.f)(torch.ones(3, device=device))


def test_a_line_whose_source_is_not_found_is_named_without_it(device):
    names: dict = {}
    exec("def f(x):\n    return x.cumsum(0)", names)
    with pytest.raises(
        TypeError, match=r"^fuse: f, <string>:2: Tensor.cumsum\(\) cannot be traced, as it adds up"
    ) as error:
        fuse(names["f"])(torch.ones(3, device=device))
    assert error.value.what == "Tensor.cumsum() cannot be traced, as it adds up along an axis, element by element"


def test_other_arguments_may_be_traced_after_an_error(device):
    fused = fuse(lambda x, ok: customops.exp(x) if ok else torch.cumsum(x, 0))
    x = torch.zeros(3, device=device)
    with pytest.raises(TypeError):
        fused(x, False)
    assert fused(x, True).equal(torch.ones(3, device=device))


def test_branching_on_shapes_dtypes_and_arguments_is_no_error(device):
    def function(x, mode, y=None):
        if y is not None:
            return x + y
        if mode == "twice" and x.dim() == 2 and x.size(0) < 4 and x.is_floating_point() and x.dtype != torch.float16:
            return x * 2
        return x / len(x)

    fused = fuse(function)
    x = torch.ones(3, 4, device=device)
    for args in ((x, "twice"), (x, "other"), (x[0], "twice"), (x.half(), "twice"), (x, "twice", x), (x.mT, "twice")):
        assert fused(*args).equal(function(*args))


def test_an_operators_own_error_is_torchs(device):
    x = torch.ones(3, 4, device=device)
    for function, error in (
        (lambda x: customops.sum(x, 5), IndexError),
        (lambda x: customops.maximum(x, 2), TypeError),
        (lambda x: customops.add(x, None), TypeError),
    ):
        with pytest.raises(error):
            fuse(function)(x)


def test_shapes_that_do_not_broadcast_are_refused_after_some_that_did(device):
    """The graph is known then, and only the sizes are new."""
    fused, x = fuse(lambda x, y: x * y + 1), torch.ones(3, 4, device=device)
    fused(x, x[0])
    with pytest.raises(RuntimeError, match="must match the size"):
        fused(x, torch.ones(5, device=device))
