"""A model's inputs, as its server tells them."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import quote

from whet.errors import EPFail, Fail, InvalidArgument
from whet.loadgen.plan import Target
from whet.loadgen.tensors import InputSpec
from whet.loadgen.wire import METADATA, metadata_inputs, metadata_request


def model_inputs(target: Target, model: str, timeout_s: float) -> list[InputSpec]:
    """Ask for a model's metadata. Raises Fail where nobody answers, InvalidArgument where the server refuses."""
    if target.protocol == "grpc":
        return _over_grpc(target, model, timeout_s)
    connection = http.client.HTTPConnection(target.host, target.port, timeout=timeout_s)
    try:
        connection.request("GET", f"/v2/models/{quote(model, safe='')}")
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise _nobody(target, str(error) or type(error).__name__) from error
    finally:
        connection.close()
    try:
        document: Any = json.loads(body)
        if answer.status != 200:
            raise _refused(target, model, f"HTTP {answer.status}: {document.get('error', document)}")
        return [InputSpec(i["name"], i["datatype"], tuple(map(int, i["shape"]))) for i in document["inputs"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InvalidArgument):
            raise
        raise _refused(target, model, f"HTTP {answer.status}, no metadata of KServe v2") from error


def _over_grpc(target: Target, model: str, timeout_s: float) -> list[InputSpec]:
    try:
        import grpc
    except ModuleNotFoundError as error:
        raise EPFail("load over gRPC needs grpcio", found="no grpcio", hint="pip install 'whet[server]'") from error
    with grpc.insecure_channel(f"{target.host}:{target.port}") as channel:
        try:
            content = channel.unary_unary(METADATA)(metadata_request(model), timeout=timeout_s, wait_for_ready=False)
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise _nobody(target, str(details)) from error
            raise _refused(target, model, f"{code.name}: {details}") from error
    return [InputSpec(name, datatype, tuple(shape)) for name, datatype, shape in metadata_inputs(content)]


def _nobody(target: Target, found: str) -> Fail:
    return Fail(
        f"no server answers at {target.host}:{target.port} over {target.protocol}", found=found,
        hint="Is it started, and is this the port of that protocol?",
    )  # fmt: skip


def _refused(target: Target, model: str, found: str) -> InvalidArgument:
    return InvalidArgument(
        f"the server at {target.host}:{target.port} gives no metadata of model {model!r}", found=found
    )
