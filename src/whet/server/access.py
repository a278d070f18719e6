"""Who may change the server: load and unload models, change trace and log settings. HTTP and gRPC share this."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from whet.server.errors import Unauthorized

SCHEME = "bearer "


@dataclass(frozen=True, slots=True)
class Access:
    """The rule of one port. `is_open`: everyone who reaches the port may; else only who shows `token`, if there is one.

    Main ports are `Access(is_open=options.admin_on_main_port)`, admin ports `Access(token=options.admin_token)`.
    """

    is_open: bool = False
    token: str | None = None

    def check(self, call: str, authorization: str | None) -> None:
        """Raise Unauthorized where the administrative `call` is not allowed with this `authorization` header."""
        if self.is_open:
            return
        if not self.token:
            raise Unauthorized(
                "administrative calls are not open on this port", value=call,
                hint="Use the admin port (--admin-port, --admin-grpc-port), or start with --admin-on-main-port.",
            )  # fmt: skip
        given = authorization or ""
        if given[: len(SCHEME)].lower() != SCHEME or not hmac.compare_digest(
            given[len(SCHEME) :].encode("utf-8", "surrogateescape"), self.token.encode()
        ):
            raise Unauthorized(
                "the call needs the administrator's token", value=call, hint="Send `authorization: Bearer TOKEN`."
            )
