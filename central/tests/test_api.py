"""The API as its description has it, under a schema-driven fuzzer: signed requests, so that it gets past the door."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from shala_agent import wire
from shala_central.server import make_server
from zone_world import Device, whole_of

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]

bounded = settings(
    max_examples=100,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class Signed(requests.auth.AuthBase):
    """Signs what the fuzzer made, as a device would; every third request is left as it is."""

    def __init__(self, device: Device) -> None:
        self._id, self._key, self._session = device.id, device.key, device.session
        self._number = itertools.count()

    def __call__(self, prepared: requests.PreparedRequest) -> requests.PreparedRequest:
        if next(self._number) % 3 == 0:
            return prepared
        body: Any = prepared.body or b""
        path = (prepared.path_url or "").partition("?")[0]
        session = self._session if "/segments/" in path else ""
        offset = prepared.headers.get(wire.OFFSET_HEADER, "0")
        number = int(offset) if offset.isascii() and offset.isdigit() and prepared.method == "PUT" else 0
        raw = body.encode() if isinstance(body, str) else body
        text = wire.signed_text(prepared.method or "", path, session, number, raw)
        prepared.headers[wire.DEVICE_HEADER] = self._id
        prepared.headers[wire.SIGNATURE_HEADER] = wire.sign(self._key, text)
        if session:
            prepared.headers[wire.SESSION_HEADER] = session
        return prepared


def test_a_fuzzer_finds_no_request_that_the_server_fails_at(served, join):
    aizawl = join()
    aizawl.open()
    assert aizawl.put(whole_of(aizawl)).status == 200
    signed = Signed(aizawl)
    reached: Counter[tuple[str, int]] = Counter()

    def fuzz(case: schemathesis.Case) -> None:
        answer = case.call(auth=signed)
        reached[case.operation.label, answer.status_code] += 1
        case.validate_response(answer, checks=CHECKS)

    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{served.port}/v1/openapi.json")
    for found in schema.get_all_operations():
        bounded(given(case=found.ok().as_strategy())(fuzz))()
    # Beyond the door, or the fuzzer has tried nothing.
    assert reached["POST /v1/sync", 200]
    assert reached["POST /v1/enrol", 422]
    assert reached["PUT /v1/segments/{id}", 422]
    assert reached["GET /v1/segments/{id}", 404]


def test_the_description_holds_itself_and_that_the_database_may_not_answer(served):
    described = requests.get(f"http://127.0.0.1:{served.port}/v1/openapi.json", timeout=10).json()
    assert set(described["paths"]) == {route.path for route in make_server(served.settings).routes}
    for operations in described["paths"].values():
        for operation in operations.values():
            assert "503" in operation["responses"]


def test_the_description_names_the_very_messages_of_the_wire(served):
    described = requests.get(f"http://127.0.0.1:{served.port}/v1/openapi.json", timeout=10).json()
    assert set(described["components"]["schemas"]) >= {
        "SyncRequest",
        "SyncAnswer",
        "Receipt",
        "EnrolRequest",
        "EnrolAnswer",
    }
    assert (
        described["components"]["schemas"]["SyncRequest"]["properties"]["offers"]["maxItems"]
        == wire.MAX_OFFERS
    )
