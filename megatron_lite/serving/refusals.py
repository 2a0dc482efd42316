"""What a client is told when its request cannot be answered: OpenAI's error object, with a status and a reason."""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response


class Refusal(Exception):
    """`parameter` is the one that is wrong, where it is one."""

    def __init__(
        self, status: int, reason: str, parameter: str | None = None, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):  # fmt: skip
        super().__init__(reason)
        self.status, self.reason, self.parameter, self.code = status, reason, parameter, code
        self.headers = dict(headers or {})

    @property
    def tree(self) -> dict[str, Any]:
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.reason, "type": kind, "param": self.parameter, "code": self.code}}

    def response(self) -> Response:
        return json_response(self.tree, self.status, self.headers)


KINDS = {401: "authentication_error", 429: "rate_limit_error"}  # types of OpenAI's beside the usual two


def json_response(tree: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(tree), status, headers, media_type="application/json")
