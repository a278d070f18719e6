"""Branches and loops inside of compiled programs, against the reference provider and onnxruntime."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

import whet
from tests.control_models import BOOL, FLOAT, INT, Array, agree, body, branch, loop_body, model, node, refusal, session
from whet.errors import Terminated

RNG = np.random.default_rng(7)
SIZES = ((3, 4), (7, 9), (1, 2), (64, 33))


def floats(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def number(value: float, kind: Any = np.int64) -> Array:
    return np.array(value, kind)


def chosen_by_sum(then_branch: Any, else_branch: Any, result: str = "y") -> list[Any]:
    """Nodes that choose a branch by the sum of x."""
    return [
        node("ReduceSum", ["x"], ["sum"], keepdims=0),
        node("Greater", ["sum", "zero"], ["positive"]),
        node("If", ["positive"], [result], then_branch=then_branch, else_branch=else_branch),
    ]


ZERO = {"zero": np.float32(0)}


# Branches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [[3, 4], ["n", "m"]])
def test_a_branch_is_chosen_by_data(shape: list[int | str]) -> None:
    then_branch = branch([node("Add", ["x", "one"], ["t"])], ("t", FLOAT))
    else_branch = branch([node("Mul", ["x", "x"], ["q"]), node("Neg", ["q"], ["e"])], ("e", FLOAT))
    proto = model(
        [*chosen_by_sum(then_branch, else_branch), node("Relu", ["y"], ["r"])],
        [("x", FLOAT, shape)], [("r", FLOAT), ("y", FLOAT)], {**ZERO, "one": np.float32(1)},
    )  # fmt: skip
    sizes = SIZES if shape == ["n", "m"] else SIZES[:1]
    agree(proto, [{"x": sign * np.abs(floats(*size))} for size in sizes for sign in (1, -1)])


def test_branches_may_pass_on_what_is_outside() -> None:
    proto = model(
        [
            node("Exp", ["x"], ["ex"]),
            *chosen_by_sum(branch([], ("ex", FLOAT)), branch([node("Identity", ["x"], ["e"])], ("e", FLOAT))),
            node("Add", ["y", "ex"], ["r"]),
        ],
        [("x", FLOAT, ["n"])], [("r", FLOAT)], ZERO,
    )  # fmt: skip
    agree(proto, [{"x": floats(5)}, {"x": -np.abs(floats(9))}], with_onnxruntime=False)


def test_branches_may_differ_in_their_extents() -> None:
    then_branch = branch([node("Concat", ["x", "x"], ["t"], axis=0)], ("t", FLOAT))
    else_branch = branch([node("Neg", ["x"], ["e"])], ("e", FLOAT))
    proto = model(
        [*chosen_by_sum(then_branch, else_branch), node("Exp", ["y"], ["r"]), node("Shape", ["y"], ["s"])],
        [("x", FLOAT, ["n", 4])], [("r", FLOAT), ("s", INT)], ZERO,
    )  # fmt: skip
    agree(proto, [{"x": sign * np.abs(floats(n, 4))} for n in (1, 3, 17) for sign in (1, -1)])


def test_branches_in_branches() -> None:
    inner = node(
        "If", ["d"], ["it"], then_branch=branch([node("Exp", ["x"], ["a"])], ("a", FLOAT)),
        else_branch=branch([node("Abs", ["x"], ["b"])], ("b", FLOAT)),
    )  # fmt: skip
    proto = model(
        [
            node("If", ["c"], ["y"], then_branch=branch([inner, node("Add", ["it", "x"], ["t"])], ("t", FLOAT)),
                 else_branch=branch([node("Neg", ["x"], ["e"])], ("e", FLOAT))),
        ],
        [("x", FLOAT, ["n", 4]), ("c", BOOL, []), ("d", BOOL, [])], [("y", FLOAT)],
    )  # fmt: skip
    feeds = [{"x": floats(3, 4), "c": np.array(c), "d": np.array(d)} for c in (True, False) for d in (True, False)]
    made = agree(proto, feeds)
    assert made.placement.by_provider == {"CPUExecutionProvider": 1}


def test_a_branch_that_decides_a_rank_is_taken_before_the_program_is_made() -> None:
    then_branch = branch([node("Unsqueeze", ["x", "axes"], ["t"])], ("t", FLOAT))
    else_branch = branch([node("Neg", ["x"], ["e"])], ("e", FLOAT))
    proto = model(
        [node("If", ["c"], ["y"], then_branch=then_branch, else_branch=else_branch), node("Exp", ["y"], ["r"])],
        [("x", FLOAT, ["n", 4]), ("c", BOOL, [])], [("y", FLOAT)], {"axes": np.array([0])},
    )  # fmt: skip
    agree(proto, [{"x": floats(n, 4), "c": np.array(c)} for n in (2, 5) for c in (True, False)])


def test_branches_of_different_ranks_by_data_are_refused() -> None:
    then_branch = branch([node("Unsqueeze", ["x", "axes"], ["t"])], ("t", FLOAT))
    proto = model(
        chosen_by_sum(then_branch, branch([node("Neg", ["x"], ["e"])], ("e", FLOAT))),
        [("x", FLOAT, [100])], [("y", FLOAT)], {**ZERO, "axes": np.array([0])},
    )  # fmt: skip
    assert "different ranks" in refusal(proto, "If")
    agree(proto, [{"x": floats(100)}], compiled=False)


# Loops -------------------------------------------------------------------------------------------------------------


def loop(inputs: list[str], outputs: list[str], graph: Any) -> Any:
    return node("Loop", inputs, outputs, body=graph)


STEP = [node("Mul", ["s", "two"], ["s2"]), node("Add", ["s2", "x"], ["next"])]
VECTOR = [("m", INT, []), ("s0", FLOAT, ["n"]), ("x", FLOAT, ["n"])]


def rounds_feeds(*rounds: int) -> list[dict[str, Array]]:
    return [{"m": number(m), "s0": floats(n), "x": floats(n)} for m in rounds for n in (5, 17)]


@pytest.mark.parametrize("stacks", [False, True])
def test_a_state_is_carried(stacks: bool) -> None:
    nodes = [*STEP, node("Neg", ["next"], ["row"])]
    graph = loop_body(nodes, ["s"], ["next", "row"] if stacks else ["next"])
    outputs = ["last", "rows"] if stacks else ["last"]
    proto = model(
        [loop(["m", "", "s0"], outputs, graph)], VECTOR, [(o, FLOAT) for o in outputs], {"two": np.float32(0.5)}
    )
    agree(proto, rounds_feeds(3, 1, 10) if stacks else rounds_feeds(0, 3, 1, 10, -2))


def test_no_rounds_leave_no_rows() -> None:
    graph = loop_body([*STEP, node("Neg", ["next"], ["row"])], ["s"], ["next", "row"])
    proto = model(
        [loop(["m", "", "s0"], ["last", "rows"], graph)],
        VECTOR,
        [("last", FLOAT), ("rows", FLOAT)],
        {"two": np.float32(2)},
    )
    x = floats(5)
    last, rows = session(proto).run(None, {"m": number(0), "s0": x, "x": x})
    np.testing.assert_array_equal(last, x)
    assert rows.shape == (0, 5)


def test_a_condition_ends_the_rounds_early() -> None:
    graph = loop_body(
        [
            node("Add", ["s", "x"], ["next"]),
            node("ReduceSum", ["next"], ["total"], keepdims=0),
            node("Less", ["total", "limit"], ["going"]),
            node("Cast", ["i"], ["fi"], to=FLOAT),
            node("Add", ["next", "fi"], ["row"]),
        ],
        ["s"], ["next", "row"], going="going",
    )  # fmt: skip
    proto = model(
        [
            loop(["m", "", "s0"], ["last", "rows"], graph),
            node("Neg", ["rows"], ["r"]),
            node("Shape", ["rows"], ["shape"]),
        ],
        [("limit", FLOAT, []), *VECTOR[1:]],
        [("last", FLOAT), ("r", FLOAT), ("shape", INT)],
        {"m": np.int64(20)},
    )
    feeds = [{"limit": number(limit, np.float32), "s0": np.ones(n, np.float32), "x": np.ones(n, np.float32)}
             for limit in (3, 0, 40, 1e9) for n in (3, 5)]  # fmt: skip
    agree(proto, feeds)


@pytest.mark.parametrize("limit", [2**63 - 1, None])
def test_rounds_without_a_limit(limit: int | None) -> None:
    graph = loop_body(
        [*STEP, node("ReduceSum", ["next"], ["total"], keepdims=0), node("Less", ["total", "limit"], ["going"])],
        ["s"], ["next"], going="going",
    )  # fmt: skip
    proto = model(
        [loop(["m" if limit else "", "c", "s0"], ["last"], graph)],
        [("limit", FLOAT, []), ("c", BOOL, []), *VECTOR[1:]],
        [("last", FLOAT)],
        {"two": np.float32(1), "m": np.int64(limit or 0)},
    )
    feeds = [
        {"limit": number(top, np.float32), "c": np.array(c), "s0": np.ones(3, np.float32), "x": np.ones(3, np.float32)}
        for top, c in ((3, True), (100, True), (100, False))
    ]
    agree(proto, feeds)


@pytest.mark.parametrize("plain", [False, True])
def test_states_may_change_places(plain: bool) -> None:
    nodes = [node("Identity", ["b"], ["a2"]), node("Identity" if plain else "Exp", ["a"], ["b2"])]
    proto = model(
        [node("Neg", ["x"], ["nx"]), loop(["m", "", "x", "nx"], ["p", "q"], loop_body(nodes, ["a", "b"], ["a2", "b2"])),
         node("Sub", ["p", "q"], ["r"])],
        [("m", INT, []), ("x", FLOAT, ["n", "k"])], [("r", FLOAT), ("q", FLOAT)],
    )  # fmt: skip
    agree(proto, [{"m": number(m), "x": floats(*size)} for m in (0, 1, 2, 3) for size in SIZES])


def test_a_round_reads_its_own_part() -> None:
    graph = loop_body(
        [
            node("Gather", ["x", "i"], ["row"], axis=0),
            node("Add", ["s", "row"], ["next"]),
            node("Unsqueeze", ["i", "axis"], ["from"]),
            node("Add", ["from", "one"], ["to"]),
            node("Slice", ["x", "from", "to", "axis"], ["part"]),
            node("ReduceSum", ["part", "axis"], ["sum"], keepdims=0),
        ],
        ["s"], ["next", "sum"],
    )  # fmt: skip
    proto = model(
        [
            node("Shape", ["x"], ["d"], end=1),
            node("Squeeze", ["d"], ["m"]),
            loop(["m", "", "s0"], ["last", "rows"], graph),
        ],
        [("s0", FLOAT, ["k"]), ("x", FLOAT, ["n", "k"])],
        [("last", FLOAT), ("rows", FLOAT)],
        {"axis": np.array([0]), "one": np.array([1])},
    )
    agree(proto, [{"s0": floats(k), "x": floats(n, k)} for n, k in ((3, 5), (1, 5), (20, 33))])


def test_loops_and_branches_in_loops() -> None:
    inner = body(
        [node("Add", ["t", "x"], ["t2"]), node("Identity", ["c"], ["c2"])],
        [("j", INT, []), ("c", BOOL, []), ("t", FLOAT, None)], [("c2", BOOL, []), ("t2", FLOAT, None)],
    )  # fmt: skip
    choice = node(
        "If", ["odd"], ["next"], then_branch=branch([node("Neg", ["u"], ["b1"])], ("b1", FLOAT)),
        else_branch=branch([node("Mul", ["u", "half"], ["b2"])], ("b2", FLOAT)),
    )  # fmt: skip
    graph = loop_body(
        [
            loop(["i", "", "s"], ["u"], inner),
            node("Mod", ["i", "two"], ["r"]),
            node("Cast", ["r"], ["odd"], to=BOOL),
            choice,
        ],
        ["s"],
        ["next", "u"],
    )
    proto = model(
        [loop(["m", "", "s0"], ["last", "rows"], graph)], VECTOR, [("last", FLOAT), ("rows", FLOAT)],
        {"two": np.int64(2), "half": np.float32(0.5)},
    )  # fmt: skip
    agree(proto, rounds_feeds(3, 1, 6))


def test_products_and_norms_in_a_loop() -> None:
    graph = loop_body(
        [
            node("MatMul", ["s", "w"], ["p"]),
            node("Add", ["p", "x"], ["q"]),
            node("Softmax", ["q"], ["f"], axis=-1),
            node("Concat", ["f", "q"], ["both"], axis=0),
            node("ReduceMax", ["both", "axes"], ["row"], keepdims=0),
            node("Tanh", ["q"], ["next"]),
        ],
        ["s"], ["next", "row"],
    )  # fmt: skip
    proto = model(
        [loop(["m", "", "x"], ["last", "rows"], graph)],
        [("m", INT, []), ("x", FLOAT, ["n", 12])],
        [("last", FLOAT), ("rows", FLOAT)],
        {"w": floats(12, 12), "axes": np.array([0])},
    )
    agree(proto, [{"m": number(m), "x": floats(n, 12)} for m in (1, 4) for n in (1, 6, 40)])


def test_states_that_grow_are_refused() -> None:
    graph = loop_body([node("Concat", ["s", "x"], ["next"], axis=0)], ["s"], ["next"])
    proto = model([loop(["m", "", "s0"], ["last"], graph)], VECTOR, [("last", FLOAT)])
    assert "changes its shape" in refusal(proto, "Loop")
    agree(proto, rounds_feeds(0, 3), compiled=False)


def test_rows_that_nothing_bounds_are_refused() -> None:
    graph = loop_body(
        [*STEP, node("ReduceSum", ["next"], ["total"], keepdims=0), node("Less", ["total", "limit"], ["going"])],
        ["s"], ["next", "next"], going="going",
    )  # fmt: skip
    proto = model(
        [loop(["", "", "s0"], ["last", "rows"], graph)],
        [("limit", FLOAT, []), *VECTOR[1:]],
        [("last", FLOAT), ("rows", FLOAT)],
        {"two": np.float32(1)},
    )
    assert "nothing bounds its number of rounds" in refusal(proto, "Loop")


def test_sequences_as_states_are_refused() -> None:
    sequence = helper.make_tensor_sequence_value_info
    graph = helper.make_graph(
        [node("SequenceInsert", ["s", "x"], ["next"]), node("Identity", ["before"], ["after"])],
        "body",
        [
            helper.make_tensor_value_info("i", INT, []),
            helper.make_tensor_value_info("before", BOOL, []),
            sequence("s", FLOAT, None),
        ],
        [helper.make_tensor_value_info("after", BOOL, []), sequence("next", FLOAT, None)],
    )
    proto = model(
        [node("SequenceEmpty", [], ["s0"]), loop(["m", "", "s0"], ["last"], graph),
         node("ConcatFromSequence", ["last"], ["y"], axis=0)],
        [("m", INT, []), ("x", FLOAT, ["n"])], [("y", FLOAT)],
    )  # fmt: skip
    refusal(proto, "Loop")
    agree(proto, [{"m": number(3), "x": floats(4)}], compiled=False)


# Scans -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "back", "out_axes", "out_back"),
    [([0, 0], [0, 0], [0, 0], [0, 0]), ([1, 0], [1, 0], [1, 0], [1, 0]), ([-1, 1], [0, 1], [-1, 1], [0, 1])],
)
def test_scans(axes: list[int], back: list[int], out_axes: list[int], out_back: list[int]) -> None:
    graph = body(
        [node("Add", ["s", "a"], ["next"]), node("Mul", ["next", "b"], ["o1"]), node("Sub", ["o1", "k"], ["o2"])],
        [("s", FLOAT, None), ("a", FLOAT, None), ("b", FLOAT, None)],
        [("next", FLOAT, None), ("o1", FLOAT, None), ("o2", FLOAT, None)],
    )
    scan = node(
        "Scan", ["s0", "a", "b"], ["last", "y1", "y2"], body=graph, num_scan_inputs=2, scan_input_axes=axes,
        scan_input_directions=back, scan_output_axes=out_axes, scan_output_directions=out_back,
    )  # fmt: skip
    shapes = [["t", "w"] if axis == 0 else ["w", "t"] for axis in axes]
    proto = model(
        [scan], [("s0", FLOAT, ["w"]), ("a", FLOAT, shapes[0]), ("b", FLOAT, shapes[1]), ("k", FLOAT, [])],
        [("last", FLOAT), ("y1", FLOAT), ("y2", FLOAT)],
    )  # fmt: skip
    feeds = []
    for steps, width in ((1, 3), (4, 3), (6, 50)):
        a, b = (floats(steps, width) if axis == 0 else floats(width, steps) for axis in axes)
        feeds.append({"s0": floats(width), "a": a, "b": b, "k": number(0.25, np.float32)})
    agree(proto, feeds)


# Runs --------------------------------------------------------------------------------------------------------------


def endless() -> ModelProto:
    return model(
        [loop(["", "", "s0"], ["last"], loop_body(STEP, ["s"], ["next"]))], VECTOR[1:], [("last", FLOAT)],
        {"two": np.float32(0.5)},
    )  # fmt: skip


FEED = {"s0": np.ones(4, np.float32), "x": np.ones(4, np.float32)}


def test_a_deadline_ends_an_endless_loop() -> None:
    options = whet.RunOptions()
    options.add_run_config_entry("deadline_ms", "200")
    made, start = session(endless()), time.monotonic()
    with pytest.raises(Terminated):
        made.run(None, FEED, options)
    assert 0.15 < time.monotonic() - start < 30


def test_terminate_ends_an_endless_loop() -> None:
    options = whet.RunOptions()
    timer = threading.Timer(0.2, lambda: setattr(options, "terminate", True))
    timer.start()
    with pytest.raises(Terminated):
        session(endless()).run(None, FEED, options)


def test_several_threads_at_once() -> None:
    graph = loop_body([*STEP, node("Neg", ["next"], ["row"])], ["s"], ["next", "row"])
    proto = model(
        [loop(["m", "", "s0"], ["last", "rows"], graph), node("NonZero", ["s0"], ["where"])], VECTOR,
        [("last", FLOAT), ("rows", FLOAT), ("where", INT)], {"two": np.float32(0.5)},
    )  # fmt: skip
    made = session(proto)
    feeds = [{"m": number(m), "s0": np.round(floats(n)), "x": floats(n)} for m in (1, 5) for n in (3, 8, 40)]
    expected = [made.run(None, feed) for feed in feeds]
    wrong: list[int] = []

    def work(offset: int) -> None:
        for k in range(60):
            at = (k + offset) % len(feeds)
            for one, other in zip(made.run(None, feeds[at]), expected[at], strict=True):
                if one.shape != other.shape or not np.array_equal(one, other):
                    wrong.append(at)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_profiles_count_every_round(tmp_path: Path) -> None:
    options = whet.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile_")
    proto = model(
        [loop(["m", "", "s0"], ["last"], loop_body(STEP, ["s"], ["next"]))],
        VECTOR,
        [("last", FLOAT)],
        {"two": np.float32(2)},
    )
    made = session(proto, sess_options=options)
    made.run(None, {"m": number(7), **FEED})
    assert made.end_profiling()


def test_an_element_type_that_kernels_do_not_hold_is_refused() -> None:
    text = TensorProto.STRING
    proto = model(
        [node("If", ["c"], ["y"], then_branch=branch([node("Identity", ["x"], ["t"])], ("t", text)),
              else_branch=branch([node("Identity", ["x"], ["e"])], ("e", text)))],
        [("x", text, [2]), ("c", BOOL, [])], [("y", text)],
    )  # fmt: skip
    assert "element type string" in refusal(proto, "If")
