"""OpenAPI: the description of the sync server, made from the very messages that it reads and writes."""

from __future__ import annotations

import functools
from typing import Any

import msgspec
from shala_agent.segment import MAX_SEGMENT
from shala_agent.wire import (
    DEVICE_HEADER,
    OFFSET_HEADER,
    SESSION_HEADER,
    SIGNATURE_HEADER,
    SIZE_HEADER,
    EnrolAnswer,
    EnrolRequest,
    Problem,
    Receipt,
    SyncAnswer,
    SyncRequest,
)

from shala_central import __version__

_REFUSALS = {
    400: "not HTTP as it should be",
    401: "not signed, or the session is unknown or over",
    403: "not enrolled, revoked, moved, or the token does not admit",
    404: "there is no such segment in the device's zone",
    409: "the offset is not what the centre has: `offset` tells",
    413: "too large",
    416: "the segment ends before the range",
    422: "not a message of this format, or a segment that never will be taken: `refused` says why",
    429: "too many requests of this device, or enrolments from this address",
    503: "the centre's database does not answer: it comes later",
    507: "the centre has no room for more of this device: it comes later",
}
_HEX = "^[0-9a-f]{64}$"
_MAX = (1 << 53) - 1


@functools.cache
def description() -> dict[str, Any]:
    """Return the OpenAPI description as it is served at /v1/openapi.json."""
    messages = (EnrolRequest, EnrolAnswer, SyncRequest, SyncAnswer, Receipt, Problem)
    _, schemas = msgspec.json.schema_components(messages, ref_template="#/components/schemas/{name}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "shala zone sync",
            "version": __version__,
            "description": "How the servers of a zone and the centre exchange segments: docs/protocol.md",
        },
        "paths": _paths(),
        "components": {"schemas": schemas, "parameters": _parameters()},
    }


def _paths() -> dict[str, Any]:
    segment = [_parameter(name) for name in ("id", "device", "signature", "session")]
    return {
        "/v1/enrol": {
            "post": _operation(
                "enrol",
                "Become a device of the zone that the token stands for",
                [],
                _body("EnrolRequest"),
                {200: _answer("EnrolAnswer", "enrolled")},
                (400, 403, 413, 422, 429),
            )
        },
        "/v1/sync": {
            "post": _operation(
                "sync",
                "Open a session: say what there is, hear what is wanted and what is new",
                [_parameter("device"), _parameter("signature")],
                _body("SyncRequest"),
                {200: _answer("SyncAnswer", "a session, or a fork")},
                (400, 401, 403, 413, 422, 429, 507),
            )
        },
        "/v1/segments/{id}": {
            "put": _operation(
                "put_segment",
                "Upload a segment, or a part of it",
                [*segment, _parameter("offset"), _parameter("size")],
                {"required": True, "content": {"application/octet-stream": {}}},
                {200: _answer("Receipt", "on the centre's disk")},
                (400, 401, 403, 409, 413, 422, 429, 507),
            ),
            "get": _operation(
                "get_segment",
                "Download a segment, or the rest of it",
                [*segment, _parameter("range")],
                None,
                {
                    200: {"description": "the segment", "content": {"application/octet-stream": {}}},
                    206: {"description": "the range", "content": {"application/octet-stream": {}}},
                },
                (400, 401, 403, 404, 416, 422, 429),
            ),
        },
        "/v1/health": {
            "get": _operation(
                "health",
                "Whether the server and its database work",
                [],
                None,
                {200: _json("the server works", {"type": "object", "required": ["status"]})},
                (400,),
            )
        },
        "/v1/openapi.json": {
            "get": _operation(
                "description",
                "This description",
                [],
                None,
                {200: _json("OpenAPI 3.1", {"type": "object", "required": ["openapi", "paths"]})},
                (400,),
            )
        },
    }


def _parameters() -> dict[str, Any]:
    hexadecimal = {"type": "string", "pattern": _HEX}
    count = {"type": "integer", "minimum": 0, "maximum": _MAX}
    size = {"type": "integer", "minimum": 1, "maximum": MAX_SEGMENT}
    signature = {"type": "string", "contentEncoding": "base64"}
    return {
        "id": {"name": "id", "in": "path", "required": True, "schema": hexadecimal},
        "device": _header(DEVICE_HEADER, "the device id", hexadecimal),
        "signature": _header(SIGNATURE_HEADER, "of shala_agent.wire.signed_text", signature),
        "session": _header(SESSION_HEADER, "the token of the session", {"type": "string"}),
        "offset": _header(OFFSET_HEADER, "at which byte of the segment the body begins", count),
        "size": _header(SIZE_HEADER, "how many bytes the segment has", size),
        "range": {**_header("Range", "`bytes=n-`", {"type": "string"}), "required": False},
    }


def _operation(  # noqa: PLR0917 - what an operation is
    name: str,
    summary: str,
    parameters: list[dict[str, Any]],
    body: dict[str, Any] | None,
    answers: dict[int, dict[str, Any]],
    refusals: tuple[int, ...],
) -> dict[str, Any]:
    # What fails behind it may fail with any of them.
    refused = {status: _answer("Problem", _REFUSALS[status]) for status in sorted({*refusals, 503})}
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "responses": {str(status): answer for status, answer in {**answers, **refused}.items()},
    }
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = body
    return operation


def _parameter(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/parameters/{name}"}


def _header(name: str, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": True, "description": text, "schema": schema}


def _body(message: str) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": _schema(message)}}}


def _answer(message: str, text: str) -> dict[str, Any]:
    return _json(text, _schema(message))


def _json(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _schema(message: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{message}"}
