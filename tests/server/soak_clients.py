"""Clients of the soak whose requests are good: each is answered, and every answer is compared."""

from __future__ import annotations

import gzip
import http.client
import itertools
import json
import queue
import time
from typing import Any

import ml_dtypes
import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.server.soak_book import CALL_S, Soak
from tests.server.soak_models import Array, Feed

NUMPY: dict[str, Any] = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "FP16": np.float16, "FP32": np.float32,
    "FP64": np.float64, "BF16": ml_dtypes.bfloat16, "BYTES": np.object_,
}  # fmt: skip

_SEQUENCES = itertools.count(1)


def datatype(array: Array) -> str:
    return "BF16" if array.dtype == ml_dtypes.bfloat16 else str(np_to_triton_dtype(array.dtype))


def triton_inputs(package: Any, feed: Feed, binary: Any = None) -> list[Any]:
    """Inputs for tritonclient's HTTP or gRPC package. `binary`: whether each leaves the JSON, over HTTP."""
    found = []
    for name, array in feed.items():
        tensor = package.InferInput(name, list(array.shape), datatype(array))
        tensor.set_data_from_numpy(array, *([] if binary is None else [binary()]))
        found.append(tensor)
    return found


def triton_outputs(result: Any, names: list[str]) -> Feed:
    return {name: result.as_numpy(name) for name in names}


def json_request(feed: Feed, **more: Any) -> bytes:
    inputs = [
        {"name": n, "shape": list(a.shape), "datatype": datatype(a), "data": a.reshape(-1).tolist()}
        for n, a in feed.items()
    ]
    return json.dumps({"inputs": inputs, **more}).encode()


def json_outputs(document: Any) -> Feed:
    return {
        o["name"]: np.array(o["data"], NUMPY[o["datatype"]]).reshape(o["shape"]) for o in document["outputs"]
    }  # fmt: skip


def http_json(soak: Soak, who: str) -> None:
    """One keep-alive connection, JSON both ways, sometimes compressed."""
    rng = soak.generator(who)
    asked = [a for a in soak.asked.values() if a.json]
    connection = http.client.HTTPConnection(soak.http, timeout=CALL_S)
    for turn in soak.turns():
        model = asked[int(rng.integers(len(asked)))]
        feed = model.draw(rng)
        body, headers = json_request(feed, id=f"{who}-{turn}"), {"content-type": "application/json"}
        if turn % 7 == 0:
            body, headers["content-encoding"] = gzip.compress(body, 1), "gzip"
        if turn % 5 == 0:
            headers["accept-encoding"] = "gzip"
        with soak.attempt(who, model.name):
            connection.request("POST", f"/v2/models/{model.name}/infer", body, headers)
            answer = connection.getresponse()
            content = answer.read()
            if answer.headers.get("content-encoding") == "gzip":
                content = gzip.decompress(content)
            if answer.status != 200:
                soak.book.problem(who, f"{model.name} answered {answer.status}: {content[:500]!r}")
                continue
            document = json.loads(content)
            if document["id"] != f"{who}-{turn}":
                soak.book.problem(who, f"the answer's id is {document['id']}, expected {who}-{turn}")
            soak.book.check(who, model, feed, json_outputs(document))
            if turn % 500 == 499:
                connection.close()
    connection.close()


def http_binary(soak: Soak, who: str) -> None:
    """tritonclient over HTTP, each tensor in the JSON or behind it."""
    rng = soak.generator(who)
    asked = list(soak.asked.values())
    client = triton_http.InferenceServerClient(soak.http, connection_timeout=CALL_S, network_timeout=CALL_S)
    for turn in soak.turns():
        model = asked[int(rng.integers(len(asked)))]
        feed = model.draw(rng)
        # tritonclient does not write these as JSON.
        always = not model.json
        with soak.attempt(who, model.name):
            inputs = triton_inputs(triton_http, feed, lambda always=always: always or bool(rng.integers(2)))
            names = list(model.expect(feed))
            outputs = [triton_http.InferRequestedOutput(n, always or bool(rng.integers(2))) for n in names]
            result = client.infer(model.name, inputs, outputs=outputs, request_id=f"{who}-{turn}")
            if result.get_response()["id"] != f"{who}-{turn}":
                soak.book.problem(who, f"the answer's id is {result.get_response()['id']}, expected {who}-{turn}")
            soak.book.check(who, model, feed, triton_outputs(result, names))
    client.close()


def grpc_unary(soak: Soak, who: str) -> None:
    """tritonclient over gRPC: one call at a time, or several side by side."""
    rng = soak.generator(who)
    asked = list(soak.asked.values())
    with triton_grpc.InferenceServerClient(soak.grpc) as client:
        for turn in soak.turns():
            several = []
            for at in range(int(rng.integers(1, 6)) if turn % 4 == 0 else 1):
                model = asked[int(rng.integers(len(asked)))]
                feed = model.draw(rng)
                got: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
                client.async_infer(
                    model.name, triton_inputs(triton_grpc, feed),
                    # tritonclient passes these by their names.
                    lambda result, error, got=got: got.put((result, error)),
                    request_id=f"{who}-{turn}-{at}", client_timeout=CALL_S,
                )  # fmt: skip
                several.append((model, feed, got, f"{who}-{turn}-{at}"))
            for model, feed, got, request_id in several:
                with soak.attempt(who, model.name):
                    result, error = got.get(timeout=CALL_S + 10)
                    if error is not None:
                        soak.book.problem(who, f"{model.name}: {error}")
                        continue
                    if result.get_response().id != request_id:
                        soak.book.problem(who, f"the answer's id is {result.get_response().id}, expected {request_id}")
                    soak.book.check(who, model, feed, triton_outputs(result, list(model.expect(feed))))


def grpc_stream(soak: Soak, who: str) -> None:
    """Streams of many requests, answered in their order."""
    rng = soak.generator(who)
    asked = list(soak.asked.values())
    for turn in soak.turns(0.01):
        with soak.attempt(who, "stream"), triton_grpc.InferenceServerClient(soak.grpc) as client:
            got: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
            client.start_stream(lambda result, error, got=got: got.put((result, error)))
            sent = []
            for at in range(int(rng.integers(1, 40))):
                model = asked[int(rng.integers(len(asked)))]
                feed = model.draw(rng)
                request_id = f"{who}-{turn}-{at}"
                client.async_stream_infer(model.name, triton_inputs(triton_grpc, feed), request_id=request_id)
                sent.append((model, feed, request_id))
            for model, feed, request_id in sent:
                result, error = got.get(timeout=CALL_S)
                if error is not None:
                    soak.book.problem(who, f"{model.name}: {error}")
                    continue
                if result.get_response().id != request_id:
                    soak.book.problem(who, f"the answer's id is {result.get_response().id}, expected {request_id}")
                soak.book.check(who, model, feed, triton_outputs(result, list(model.expect(feed))))
            client.stop_stream()


def sequences(soak: Soak, who: str) -> None:
    """Whole sequences of random length over HTTP or gRPC; the running sum is the server's state."""
    rng = soak.generator(who)
    over_http = triton_http.InferenceServerClient(soak.http, connection_timeout=CALL_S, network_timeout=CALL_S)
    over_grpc = triton_grpc.InferenceServerClient(soak.grpc)
    for turn in soak.turns():
        package, client = ((triton_http, over_http), (triton_grpc, over_grpc))[turn % 2]
        model = ("sums", "oldest")[int(rng.integers(2))]
        # Whole numbers: their sums are exact.
        steps = rng.integers(-1000, 1000, (int(rng.integers(1, 9)), 1, 2)).astype(np.float32)
        number, total = next(_SEQUENCES), np.zeros((1, 2), np.float32)
        for at, x in enumerate(steps):
            start, end = at == 0, at == len(steps) - 1
            total = total + x
            with soak.attempt(who, f"{model}, step {at} of {len(steps)}"):
                result = client.infer(
                    model, triton_inputs(package, {"x": x}), sequence_id=number, sequence_start=start, sequence_end=end
                )
                y, flags, correlation = (result.as_numpy(n) for n in ("y", "flags", "id"))
                if (y.tolist(), flags.tolist(), correlation.tolist()) == (
                    total.tolist(), [[100.0 * start + 10.0 * end + 1.0]], [[number]],
                ):  # fmt: skip
                    soak.book.ok(who, model)
                else:
                    text = f"wrong answer of {model} in step {at}: {y}, {flags}, {correlation}"
                    soak.book.problem(who, f"{text}; expected {total}, start {start}, end {end}, {number}")
                continue
            break
    over_http.close()
    over_grpc.close()


def swap_user(soak: Soak, who: str) -> None:
    """Uses the model that is replaced all the time: always answered, always by one that is there at that moment."""
    rng = soak.generator(who)
    over_http = triton_http.InferenceServerClient(soak.http, connection_timeout=CALL_S, network_timeout=CALL_S)
    over_grpc = triton_grpc.InferenceServerClient(soak.grpc)
    for turn in soak.turns():
        package, client = ((triton_http, over_http), (triton_grpc, over_grpc))[turn % 2]
        x = rng.standard_normal((int(rng.integers(1, 5)), 4)).astype(np.float32)
        with soak.attempt(who, "swap"):
            began = time.monotonic()
            y = client.infer("swap", triton_inputs(package, {"x": x})).as_numpy("y")
            factors = soak.factors.within(began, time.monotonic())
            if any(y.tobytes() == (x * np.float32(f)).tobytes() for f in factors):
                soak.book.ok(who, "swap")
            else:
                soak.book.problem(who, f"wrong answer of swap: {y} for {x}, factors {factors}")
    over_http.close()
    over_grpc.close()


def onoff_user(soak: Soak, who: str) -> None:
    """Uses the model that is loaded and unloaded: answered while it is on, told so while it is off."""
    rng = soak.generator(who)
    over_http = triton_http.InferenceServerClient(soak.http, connection_timeout=CALL_S, network_timeout=CALL_S)
    over_grpc = triton_grpc.InferenceServerClient(soak.grpc)
    for turn in soak.turns():
        package, client = ((triton_http, over_http), (triton_grpc, over_grpc))[turn % 2]
        x = rng.standard_normal((2, 4)).astype(np.float32)
        began = time.monotonic()
        refused = None
        with soak.attempt(who, "onoff"):
            try:
                y = client.infer("onoff", triton_inputs(package, {"x": x})).as_numpy("y")
            except InferenceServerException as error:
                refused = str(error)
            states = soak.onoff.within(began, time.monotonic())
            if refused is None:
                if states == {"off"} or y.tobytes() != (x * np.float32(5)).tobytes():
                    soak.book.problem(who, f"onoff answered {y} for {x} while {states}")
                else:
                    soak.book.ok(who, "onoff")
            elif states == {"on"} or not ("unload" in refused.lower() or "LOADING" in refused):
                soak.book.problem(who, f"onoff refused while {states}: {refused}")
            else:
                soak.book.note(who, "refused while unloaded")
    over_http.close()
    over_grpc.close()
