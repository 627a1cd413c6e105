"""Make vectors.json anew, after a change of the formats: python agent/tests/vectors/make.py

Keys are fixed, so all is, but for the bytes that zstd makes of a body: another version may pack them otherwise.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from nacl.signing import SigningKey
from shala_agent.membership import Statement, sign_statement
from shala_agent.segment import NONE, Entry, encode_entry, log_id, make_segment, redact
from shala_agent.wire import enrol_text, sign, signed_text

PATH = Path(__file__).with_name("vectors.json")
AUTHOR, CENTRE = SigningKey(bytes(range(32))), SigningKey(bytes(range(32, 64)))
EPOCH, ZONE = 1234567890123, "mz-aizawl"
OTHER = log_id(bytes(range(32)), 7)  # of another server, which the second entry has seen
ENTRIES = (
    Entry("account", "green-apple-mz17", 1, 1, 1534248180, '{"user_id":17995,"username":"green-apple-mz17"}'),
    Entry("progress", "green-apple-mz17/eb-unit0", 1, 3, 1534248180, '{"lessons_visited":2}', {OTHER: 5}),
    Entry("activity", "green-apple-mz17/0123456789abcdef01234567", 1, 2, 1534248180, None),
)


def made() -> dict[str, object]:
    """Return all vectors."""
    encoded = [encode_entry(entry) for entry in ENTRIES]
    segment = make_segment(AUTHOR, ZONE, EPOCH, 1, NONE, encoded)
    public = bytes(AUTHOR.verify_key).hex()
    statement = sign_statement(
        CENTRE,
        Statement(format=1, kind="enrol", zone=ZONE, key=public, name="2031017-mz17", generation=1),
    )
    revocation = sign_statement(
        CENTRE,
        Statement(
            format=1, kind="revoke", zone=ZONE, key=public, name="2031017-mz17", generation=2, reason="stolen",
            cut_offs={segment.log.hex(): 3}, heads={segment.log.hex(): [segment.id.hex()]},
        ),
    )  # fmt: skip
    body = b'{"format":1}'
    return {
        "author_seed": bytes(AUTHOR).hex(),
        "author_key": public,
        "centre_seed": bytes(CENTRE).hex(),
        "centre_key": bytes(CENTRE.verify_key).hex(),
        "zone": ZONE,
        "epoch": EPOCH,
        "log": segment.log.hex(),
        "entries": [entry.hex() for entry in encoded],
        "segment_id": segment.id.hex(),
        "segment": segment.data.hex(),
        "redacted_counter": 2,
        "redacted_segment": redact(segment, [2]).data.hex(),
        "statement_id": hashlib.sha256(statement[64:]).hexdigest(),
        "statement": statement.hex(),
        "revocation": revocation.hex(),
        "request": {
            "method": "POST", "path": "/v1/sync", "session": "", "offset": 0, "body": body.decode(),
            "signature": sign(AUTHOR, signed_text("POST", "/v1/sync", "", 0, body)),
        },
        "enrolment": {
            "name": "2031017-mz17", "token": "token",
            "signature": sign(AUTHOR, enrol_text(public, "2031017-mz17", "token")),
        },
        "cursor": {
            "ids": [segment.id.hex()],
            "digest": hashlib.sha256(bytes(8) + segment.id).digest()[:8].hex(),
        },
    }  # fmt: skip


if __name__ == "__main__":
    PATH.write_text(json.dumps(made(), indent=1) + "\n")
