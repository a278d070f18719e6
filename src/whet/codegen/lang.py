"""The kernel language, in one place to import from: what a generator of kernels needs and nothing else."""

from __future__ import annotations

from whet.codegen.convert import convert, convert_in_range, convert_saturating, reinterpret
from whet.codegen.function import Function, Parameter, Variable, Variables
from whet.codegen.irtypes import LanguageError, integer_range
from whet.codegen.memory import Pointer
from whet.codegen.module import Module, Source
from whet.codegen.ops import (
    absolute,
    add_saturating,
    all_true,
    any_true,
    ceil,
    clamp,
    concatenate,
    copysign,
    count_leading_zeros,
    count_ones,
    dot_bf16,
    dot_u8s8,
    floor,
    fma,
    greater_or_second,
    halves,
    interleave,
    iota,
    is_nan,
    less_or_second,
    look_up,
    maximum,
    minimum,
    multiply_by_power_of_two,
    permute,
    polynomial,
    prefix_mask,
    reduce,
    reduce_maximum,
    reduce_minimum,
    reduce_sum,
    round_even,
    shuffle,
    sqrt,
    subtract_saturating,
    truncate,
)
from whet.codegen.values import Operand, Value, broadcast, select

__all__ = [
    "Function", "LanguageError", "Module", "Operand", "Parameter", "Pointer", "Source", "Value", "Variable",
    "Variables", "absolute", "add_saturating", "all_true", "any_true", "broadcast", "ceil", "clamp",
    "concatenate", "convert", "convert_in_range", "convert_saturating", "copysign", "count_leading_zeros",
    "count_ones", "dot_bf16", "dot_u8s8", "floor", "fma", "greater_or_second", "halves", "integer_range",
    "interleave", "iota", "is_nan", "less_or_second", "look_up", "maximum", "minimum", "multiply_by_power_of_two",
    "permute", "polynomial", "prefix_mask", "reduce", "reduce_maximum", "reduce_minimum", "reduce_sum",
    "reinterpret", "round_even", "select", "shuffle", "sqrt", "subtract_saturating", "truncate",
]  # fmt: skip
