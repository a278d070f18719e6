"""The conformance cases of `onnx.backend.test` and how one is run through Whet and compared."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from whet import dtypes

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")


@dataclass(frozen=True)
class Case:
    """One case: the model's bytes, sets of inputs and expected outputs, and the tolerances."""

    name: str
    model: bytes
    proto: onnx.ModelProto
    data: list[tuple[list[Any], list[Any]]]
    rtol: float
    atol: float


def load_cases() -> list[Case]:
    """All cases, in the order of the sets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the case generators overflow and divide by zero on purpose
        from onnx.backend.test.loader import load_model_tests

        return [_case(test) for kind in KINDS for test in load_model_tests(kind=kind)]


def _case(test: Any) -> Case:
    if test.model is not None:
        model = test.model
        data = [([plain(v) for v in i], [plain(v) for v in o]) for i, o in test.data_sets]
        content = model.SerializeToString()
    else:
        path = os.path.join(test.model_dir, "model.onnx")
        with open(path, "rb") as file:
            content = file.read()
        model = onnx.load_model_from_string(content)
        data = []
        for folder in sorted(glob.glob(os.path.join(test.model_dir, "test_data_set_*"))):
            data.append((_read(folder, "input", model.graph.input), _read(folder, "output", model.graph.output)))
    return Case(test.name, content, model, data, test.rtol, test.atol)


def _read(folder: str, kind: str, values: Sequence[onnx.ValueInfoProto]) -> list[Any]:
    result = []
    for index in range(len(glob.glob(os.path.join(folder, f"{kind}_*.pb")))):
        with open(os.path.join(folder, f"{kind}_{index}.pb"), "rb") as file:
            content = file.read()
        type_ = values[index].type
        if type_.HasField("sequence_type"):
            result.append(plain(onnx.SequenceProto.FromString(content)))
        elif type_.HasField("optional_type"):
            result.append(plain(onnx.OptionalProto.FromString(content)))
        else:
            result.append(plain(onnx.TensorProto.FromString(content)))
    return result


def plain(value: Any) -> Any:
    """Arrays, lists, dicts and None from what the loader gives."""
    if isinstance(value, onnx.TensorProto):
        return plain(numpy_helper.to_array(value))
    if isinstance(value, onnx.SequenceProto):
        return [plain(v) for v in numpy_helper.to_list(value)]
    if isinstance(value, onnx.OptionalProto):
        return plain(numpy_helper.to_optional(value))
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if value is None:
        return None
    array = np.asarray(value)
    if array.dtype.kind in "USO":
        array = np.array([_decoded(s) for s in array.reshape(-1)], np.object_).reshape(array.shape)
    return array


def _decoded(text: Any) -> str:
    return text.decode() if isinstance(text, bytes) else str(text)


def mismatch(found: Any, expected: Any, rtol: float, atol: float, where: str = "output") -> str | None:
    """Why two values differ, in type, shape or beyond the tolerances; None where they agree."""
    if expected is None or found is None:
        return None if found is None and expected is None else f"{where}: {found!r} for {expected!r}"
    if isinstance(expected, list):
        if not isinstance(found, list) or len(found) != len(expected):
            return f"{where}: {found!r} for a sequence of {len(expected)}"
        reasons = (
            mismatch(f, e, rtol, atol, f"{where}[{i}]") for i, (f, e) in enumerate(zip(found, expected, strict=True))
        )
        return next((r for r in reasons if r), None)
    if isinstance(expected, dict):
        if not isinstance(found, dict) or set(found) != set(expected):
            return f"{where}: {found!r} for {expected!r}"
        reasons = (mismatch(np.asarray(found[k]), expected[k], rtol, atol, f"{where}[{k!r}]") for k in expected)
        return next((r for r in reasons if r), None)
    if not isinstance(found, np.ndarray):
        return f"{where}: {type(found).__name__} for a tensor"
    if found.shape != expected.shape:
        return f"{where}: shape {found.shape} for {expected.shape}"
    if dtypes.from_numpy(found.dtype) is not dtypes.from_numpy(expected.dtype):
        return f"{where}: type {found.dtype} for {expected.dtype}"
    if found.dtype == np.object_:
        return None if (found == expected).all() else f"{where}: {found!r} for {expected!r}"
    if found.dtype.kind == "c":
        close = np.isclose(found, expected, rtol=rtol, atol=atol, equal_nan=True)
    else:
        wide = np.float64 if dtypes.from_numpy(found.dtype).is_float else np.int64  # type: ignore[union-attr]
        f, e = (x if x.dtype in (np.uint64, np.bool_) else x.astype(wide) for x in (found, expected))
        close = np.isclose(f, e, rtol=rtol, atol=atol, equal_nan=f.dtype == np.float64)
    if close.all():
        return None
    first = tuple(int(i) for i in np.argwhere(~close)[0])
    return f"{where}: {(~close).sum()} of {close.size} differ, at {first} {found[first]} for {expected[first]}"
