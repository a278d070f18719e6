"""Clients of the soak that cancel, go away, come too late, or send what is wrong. None may disturb the good ones.

They use the models `slow` and `plain`, so that the counters of the others stay exact.
"""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.server.grpc_fuzz import ALLOWED, Fuzzer
from tests.server.soak_book import CALL_S, Soak
from tests.server.soak_clients import json_request, triton_inputs
from whet.server.protocol.messages import message

FOREVER = np.array([50_000_000], np.int64)
"""Steps of `slow` that nobody waits for."""
ANSWER_S = 120.0
INFER = "/inference.GRPCInferenceService/ModelInfer"


def slow_body(steps: Any = FOREVER, **parameters: Any) -> bytes:
    return json_request({"steps": steps}, **({"parameters": parameters} if parameters else {}))


def raw_request(model: str, body: bytes, length: int | None = None) -> bytes:
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def canceller(soak: Soak, who: str) -> None:
    """Calls of a slow model, cancelled at a random moment."""
    random = soak.random(who)
    with triton_grpc.InferenceServerClient(soak.grpc) as client:
        for turn in soak.turns(0.05):
            with soak.attempt(who, "cancel"):
                inputs = triton_inputs(triton_grpc, {"steps": FOREVER})
                if turn % 4 == 3:
                    client.start_stream(lambda result, error: None)
                    for _ in range(3):
                        client.async_stream_infer("slow", inputs)
                    time.sleep(random.random() * 0.1)
                    client.stop_stream(cancel_requests=True)
                    soak.book.note(who, "stream cancelled")
                else:
                    call = client.async_infer("slow", inputs, lambda result, error: None)
                    time.sleep(random.random() * 0.1)
                    call.cancel()
                    soak.book.note(who, "cancelled")


def gone(soak: Soak, who: str) -> None:
    """Connections that end in the middle of the head, of the body, or of the run."""
    random = soak.random(who)
    for turn in soak.turns(0.03):
        with soak.attempt(who, "gone"), socket.create_connection(("127.0.0.1", soak.http_port), CALL_S) as connection:
            whole = raw_request("slow", slow_body())
            cut = (random.randrange(1, 60), random.randrange(len(whole) - 30, len(whole)), len(whole))[turn % 3]
            connection.sendall(whole[:cut])
            time.sleep(random.random() * (0.2 if turn % 3 == 2 else 0.01))
            if turn % 2:
                # A reset instead of an orderly end.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            soak.book.note(who, ("in the head", "in the body", "in the run")[turn % 3])


def too_late(soak: Soak, who: str) -> None:
    """Requests whose time is over while they wait or run: told so, and soon."""
    random = soak.random(who)
    over_http = triton_http.InferenceServerClient(soak.http, connection_timeout=CALL_S, network_timeout=CALL_S)
    over_grpc = triton_grpc.InferenceServerClient(soak.grpc)
    for turn in soak.turns(0.1):
        seconds = 0.02 + random.random() * 0.1
        began = time.monotonic()
        try:
            match turn % 3:
                case 0:
                    inputs = triton_inputs(triton_http, {"steps": FOREVER})
                    over_http.infer("slow", inputs, timeout=int(seconds * 1e6))
                case 1:
                    inputs = triton_inputs(triton_grpc, {"steps": FOREVER})
                    over_grpc.infer("slow", inputs, timeout=int(seconds * 1e6), client_timeout=CALL_S)
                case _:
                    over_grpc.infer(
                        "slow", triton_inputs(triton_grpc, {"steps": FOREVER}), client_timeout=seconds
                    )  # fmt: skip
            soak.book.problem(who, "a run that takes forever was answered")
        except InferenceServerException as error:
            text = f"{error.status()} {error}"
            if not ("504" in text or "DEADLINE_EXCEEDED" in text or "time was over" in text or "Deadline" in text):
                soak.book.problem(who, f"too late, and told {text}")
            elif time.monotonic() - began > ANSWER_S:
                soak.book.problem(who, f"told after {time.monotonic() - began:.1f} s that {seconds:.2f} s were over")
            else:
                soak.book.note(who, "deadline")
    over_http.close()
    over_grpc.close()


# Model, inputs, version: what a client gets wrong; the HTTP statuses that tell.
WRONG: tuple[tuple[str, str, dict[str, Any], str, tuple[int, ...]], ...] = (
    ("model", "no-such-model", {"x": np.zeros((1, 4), np.float32)}, "", (404,)),
    ("version", "scale", {"x": np.zeros((1, 4), np.float32)}, "77", (404,)),
    ("input", "plain", {"nonsense": np.zeros((1, 4), np.float32)}, "", (400,)),
    ("datatype", "plain", {"in_BOOL": np.zeros((1, 4), np.float32)}, "", (400,)),
    ("rank", "plain", {"in_FP32": np.zeros((4,), np.float32)}, "", (400,)),
    ("broken", "broken", {"x": np.zeros((1, 4), np.float32)}, "", (503,)),
)


def wrong_names(soak: Soak, who: str) -> None:
    """Requests for what is not there: refused with the right status."""
    over_http = triton_http.InferenceServerClient(soak.http, connection_timeout=CALL_S, network_timeout=CALL_S)
    over_grpc = triton_grpc.InferenceServerClient(soak.grpc)
    codes = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 503: "UNAVAILABLE"}
    for turn in soak.turns(0.02):
        what, model, feed, version, statuses = WRONG[(turn // 2) % len(WRONG)]
        package, client = ((triton_http, over_http), (triton_grpc, over_grpc))[turn % 2]
        with soak.attempt(who, what):
            try:
                client.infer(model, triton_inputs(package, feed), model_version=version)
                soak.book.problem(who, f"wrong {what} was answered")
            except InferenceServerException as error:
                told = str(error.status())
                if any(str(s) in told or codes[s] in told for s in statuses):
                    soak.book.note(who, f"wrong {what}")
                else:
                    soak.book.problem(who, f"wrong {what}: told {told}, {error}")
    over_http.close()
    over_grpc.close()


def _mutated(random: Any, content: bytes) -> bytes:
    found = bytearray(content)
    for _ in range(random.randrange(1, 4)):
        at, size = random.randrange(len(found) or 1), random.randrange(1, 9)
        match random.randrange(5):
            case 0:
                found[at : at + 1] = bytes([random.randrange(256)])
            case 1:
                del found[at : at + size]
            case 2:
                found[at:at] = random.choice((b"1e400", b"NaN", b"-1", b"99999999999999999999", b"[[", b"null", b"\0"))
            case 3:
                found[at:at] = found[at : at + size]
            case _:
                del found[at:]
    return bytes(found)


def _first_status(connection: socket.socket) -> int:
    """The status of the answer; 0 where the connection ends without one."""
    found = b""
    while b"\r\n" not in found:
        part = connection.recv(4096)
        if not part:
            return 0
        found += part
    return int(found.split(b" ", 2)[1])


def malformed_http(soak: Soak, who: str) -> None:
    """Bodies and whole requests with changed bytes: never an error of the server, never silence."""
    random, rng = soak.random(who), soak.generator(who)
    plain = soak.asked["plain"]
    for turn in soak.turns(0.02):
        good = json_request(plain.draw(rng))
        body = _mutated(random, good)
        whole = raw_request("plain", body) if turn % 3 else _mutated(random, raw_request("plain", good))
        with soak.attempt(who, repr(whole[:700])):
            with socket.create_connection(("127.0.0.1", soak.http_port), ANSWER_S) as connection:
                connection.sendall(whole)
                if not turn % 3:
                    # A request that lacks its end is waited for: this client has no more.
                    connection.shutdown(socket.SHUT_WR)
                try:
                    status = _first_status(connection)
                except ConnectionResetError:
                    status = 0
            # A changed body may still be right, or be one of a slow client that went away.
            if (status >= 500 and status != 501) or (turn % 3 and status == 0):
                soak.book.problem(who, f"answered {status} for {whole[:700]!r}")
            else:
                soak.book.note(who, str(status), maybe="plain" if status in (0, 200) else "")


def malformed_grpc(soak: Soak, who: str) -> None:
    """Messages with changed bytes, and random ones."""
    random, rng = soak.random(who), soak.generator(who)
    fuzzer = Fuzzer(random.randrange(1 << 30))
    plain = soak.asked["plain"]
    kind = message("inference.ModelInferRequest")
    with grpc.insecure_channel(soak.grpc) as channel:
        infer = channel.unary_unary(INFER)
        for turn in soak.turns(0.02):
            if turn % 2:
                request = fuzzer.message(kind)
                request.model_name = "plain"
                content = request.SerializeToString()
            else:
                request = kind(model_name="plain")
                for name, array in plain.draw(rng).items():
                    if array.dtype != np.object_ and array.dtype != np.bool_:
                        request.inputs.add(name=name, datatype="FP32", shape=list(array.shape))
                        request.raw_input_contents.append(array.tobytes())
                content = _mutated(random, request.SerializeToString())
            with soak.attempt(who, repr(content[:700])):
                try:
                    infer(content, timeout=ANSWER_S)
                    code = "OK"
                except grpc.RpcError as error:
                    code = error.code().name
                    if code not in ALLOWED and not (code == "DEADLINE_EXCEEDED" and b"timeout" in content):
                        soak.book.problem(who, f"{code} {error.details()} for {content[:700]!r}")
                        continue
                soak.book.note(who, code, maybe="plain" if code == "OK" else "")


def reader(soak: Soak, who: str) -> None:
    """Everything that only reads: health, metadata, configurations, statistics, the index, metrics."""
    over_http = triton_http.InferenceServerClient(soak.http, connection_timeout=CALL_S, network_timeout=CALL_S)
    over_grpc = triton_grpc.InferenceServerClient(soak.grpc)
    names = list(soak.asked)
    for turn in soak.turns(0.05):
        client: Any = (over_http, over_grpc)[turn % 2]
        name = names[turn % len(names)]
        with soak.attempt(who, name):
            if not (client.is_server_live() and client.is_server_ready() and client.is_model_ready(name)):
                soak.book.problem(who, f"not ready: the server, or {name}")
                continue
            client.get_server_metadata()
            client.get_model_metadata(name)
            client.get_model_config(name)
            client.get_inference_statistics(name)
            client.get_model_repository_index()
            soak.book.note(who, "read")
    over_http.close()
    over_grpc.close()


def told(content: bytes) -> str:
    """The error of an answer."""
    try:
        return str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        return repr(content[:200])
