"""The server that the gRPC tests share: to start one takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.server.options_server import OptionsServer

ADMIN_TOKEN = "s3cret"
BODY_BYTES = 1 << 20


@pytest.fixture(scope="session")
def grpc_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OptionsServer]:
    """Serves `make_repository`; administrative calls are on a port of their own. Tests leave it as they found it."""
    pytest.importorskip("httptools")
    pytest.importorskip("tritonclient.grpc")
    from tests.server.grpc_models import make_repository
    from tests.server.options_server import LOADABLE, OptionsServer

    folder = make_repository(tmp_path_factory.mktemp("grpc") / "models")
    with OptionsServer(
        folder, admin=True, admin_token=ADMIN_TOKEN, body_bytes=BODY_BYTES, strict_readiness=False, **LOADABLE
    ) as running:
        yield running
