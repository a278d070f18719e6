"""The pieces of the load generator that need no server."""

from __future__ import annotations

import itertools
import json
import math
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from whet.cli.load import numbers, parse_models
from whet.errors import InvalidArgument, NoSuchFile
from whet.loadgen.arrivals import intervals
from whet.loadgen.driver import Mix
from whet.loadgen.histogram import Histogram, merged
from whet.loadgen.plan import ModelLoad, Pace, Plan, Target, Windows, parse_address
from whet.loadgen.tensors import DTYPES, InputSpec, encode, feeds, raw

TARGET = Target("127.0.0.1", 8000)


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_are_those_of_the_sorted_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.lognormal(-7, 2, 5000)
    parts = []
    for chunk in np.array_split(values, 7):
        parts.append(Histogram())
        parts[-1].add(chunk.tolist())
    whole = merged(parts)
    assert whole.count == 5000
    assert whole.max_s == values.max()
    assert whole.mean_s == pytest.approx(values.mean())
    for percent in (0.01, 1, 50, 90, 95, 99, 99.9, 100):
        exact = np.sort(values)[math.ceil(Fraction(str(percent)) * 5000 / 100) - 1]
        assert whole.percentile(percent) == pytest.approx(exact, rel=1e-3, abs=1e-9)


def test_histogram_of_few() -> None:
    none = Histogram()
    assert (none.percentile(99), none.mean_s) == (0.0, 0.0)
    one = Histogram()
    one.add([0.25])
    assert [one.percentile(p) for p in (0, 50, 100)] == [0.25] * 3
    two = Histogram()
    two.add([0.0, 1.0])
    assert (two.percentile(50), two.percentile(50.1)) == (0.0, 1.0)


def test_arrivals() -> None:
    assert list(itertools.islice(intervals(500, "constant", 0), 3)) == [0.002] * 3
    gaps = np.array(list(itertools.islice(intervals(500, "poisson", 1), 20_000)))
    # An exponential distribution: standard deviation equals mean, and e^-1 of the gaps are longer than it.
    assert gaps.mean() == pytest.approx(0.002, rel=0.03)
    assert gaps.std() == pytest.approx(0.002, rel=0.03)
    assert (gaps > 0.002).mean() == pytest.approx(np.exp(-1), abs=0.015)


def test_mix_follows_the_weights() -> None:
    mix = Mix([[b"a1", b"a2"], [b"b"]], [3, 1])
    order = mix.sequence(0)
    share = sum(model == 1 for model, _ in order) / len(order)
    assert share == pytest.approx(0.25, abs=0.03)
    assert {payload for model, payload in order if model == 0} == {b"a1", b"a2"}
    assert Mix([[b"x", b"y"]], [1]).sequence(0) == [(0, b"x"), (0, b"y")]


@pytest.mark.parametrize("datatype", DTYPES)
def test_random_inputs_have_type_and_shape(datatype: str) -> None:
    spec = InputSpec("x", datatype, (-1, 3))
    made = feeds(ModelLoad("m", batch=2, variants=3), [spec])
    assert len({raw(tensors[0]) for tensors in made}) > 1
    for [tensor] in made:
        assert tensor.array.shape == (2, 3)
        assert tensor.array.dtype == np.dtype(DTYPES[datatype])
        json.loads(encode(TARGET, "m", [tensor]).split(b"\r\n\r\n", 1)[1])


def test_json_request() -> None:
    [tensors] = feeds(ModelLoad("a b", inputs="zeros"), [InputSpec("x", "FP16", (-1, 2))])
    head, _, body = encode(TARGET, "a b", tensors).partition(b"\r\n\r\n")
    assert head.decode().split("\r\n") == [
        "POST /v2/models/a%20b/infer HTTP/1.1", "Host: 127.0.0.1:8000", "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]  # fmt: skip
    assert json.loads(body) == {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP16", "data": [0.0, 0.0]}]}


def test_binary_request(tmp_path: Path) -> None:
    words = np.array([["a", "ü"]])
    np.savez(tmp_path / "in.npz", x=np.float32([[1, 2]]), s=words)
    specs = [InputSpec("x", "FP32", (-1, 2)), InputSpec("s", "BYTES", (-1, 2))]
    [tensors] = feeds(ModelLoad("m", inputs=str(tmp_path / "in.npz")), specs)
    head, _, body = encode(Target("h", 1, binary=True), "m", tensors).partition(b"\r\n\r\n")
    size = int(head.lower().split(b"inference-header-content-length: ")[1].split(b"\r\n")[0])
    assert [i["parameters"]["binary_data_size"] for i in json.loads(body[:size])["inputs"]] == [8, 11]
    assert body[size:] == struct.pack("<2f", 1, 2) + b"\x01\0\0\0a\x02\0\0\0" + "ü".encode()


def test_grpc_request_is_what_protobuf_reads() -> None:
    from whet.server.protocol.messages import message

    specs = [InputSpec("x", "FP32", (-1, 300)), InputSpec("y", "INT64", (2,))]
    tensors = feeds(ModelLoad("m", batch=3), specs)[0]
    read = message("inference.ModelInferRequest").FromString(encode(Target("h", 1, "grpc"), "m", tensors))
    assert read.model_name == "m"
    assert [(i.name, i.datatype, list(i.shape)) for i in read.inputs] == [
        ("x", "FP32", [3, 300]),
        ("y", "INT64", [2]),
    ]
    assert list(read.raw_input_contents) == [tensors[0].array.tobytes(), tensors[1].array.tobytes()]


def test_grpc_metadata_is_read() -> None:
    from whet.loadgen.wire import metadata_inputs
    from whet.server.protocol.messages import message

    answer = message("inference.ModelMetadataResponse")(name="m", versions=["1"], platform="onnx")
    for name, shape in (("x", [-1, 300]), ("scalar", [])):
        answer.inputs.add(name=name, datatype="FP32", shape=shape)
    answer.outputs.add(name="z", datatype="INT8", shape=[7])
    assert metadata_inputs(answer.SerializeToString()) == [("x", "FP32", [-1, 300]), ("scalar", "FP32", [])]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("h", ("h", 8000)),
        ("h:9", ("h", 9)),
        ("http://h:9/", ("h", 9)),
        ("[::1]:7", ("::1", 7)),
        ("[::1]", ("::1", 8000)),
    ],
)
def test_addresses(text: str, found: tuple[str, int]) -> None:
    assert parse_address(text, 8000) == found


@pytest.mark.parametrize("text", ["", ":8", "h:0", "h:70000", "h:x", "h/path", "https://h:1"])
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(InvalidArgument, match="no address"):
        parse_address(text, 8000)


def test_settings_that_make_no_sense() -> None:
    specs = [InputSpec("ids", "INT64", (-1, -1))]
    with pytest.raises(InvalidArgument, match="--shape ids=1xN"):
        feeds(ModelLoad("m"), specs)
    with pytest.raises(InvalidArgument, match="Did you mean 'ids'"):
        feeds(ModelLoad("m", shapes={"idz": (1, 2)}), specs)
    with pytest.raises(InvalidArgument, match="does not fit"):
        feeds(ModelLoad("m", shapes={"ids": (1, 2, 3)}), specs)
    with pytest.raises(NoSuchFile, match=r"nowhere\.npz"):
        feeds(ModelLoad("m", inputs="nowhere.npz"), specs)
    for pace, processes in ((Pace(0), 1), (Pace(1, rate=0.0), 1), (Pace(2), 3)):
        with pytest.raises(InvalidArgument):
            Plan(TARGET, pace, Windows(), processes=processes).check()
    for wrong in ({"models": ["m=x"]}, {"models": ["m=0"]}, {"inputs": ["n=zeros"]}, {"shapes": ["x"]}):
        with pytest.raises(InvalidArgument):
            parse_models(**{"models": ["m"], "inputs": [], "shapes": [], "batch": 1, "seed": 0} | wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="--rate"):
        numbers("1,a", float, "--rate")
