"""Triton formulas that are wrong on purpose, to see the tests fail."""

import triton
import triton.language as tl


@triton.jit
def mul(x, y):
    return x * y * 1.00001


@triton.jit
def mul_dx(g, y):
    return g * y * 1.00001


@triton.jit
def mul_dy(g, x):
    return tl.where(x > 1.99, g * x * 1.000000001, g * x)


@triton.jit
def relu(x):
    return tl.where(x > 0, x, 0)  # loses nan


@triton.jit
def pow_dx(g, x, y):
    return g * (y * tl.exp2((y - 1) * tl.log2(x)))  # no branch at y = 0, no negative x
