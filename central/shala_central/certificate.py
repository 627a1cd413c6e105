"""Certificate: whether schools will go on to believe that the centre is the centre, seen as they see it."""

from __future__ import annotations

import socket
import ssl
import time
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

TOLD = Path("/etc/shala/zones.json")  # what schools are told of the centre; the role central writes it
SOON_DAYS = 30  # before its end: certbot has renewed long before that
_SECONDS = 3.0  # to wait for an answer


class _Told(msgspec.Struct):
    url: str = ""
    authority: str = ""  # in PEM; empty: one that every system knows


def certificate_problem(told: Path = TOLD) -> str:
    """Return what is to be said of the centre's certificate, "" where all is well or nobody answers."""
    try:
        said = msgspec.json.decode(told.read_bytes(), type=_Told)
        address = urlsplit(said.url)
        port = address.port or 443
    except (OSError, msgspec.MsgspecError, ValueError):
        return ""
    if address.scheme != "https" or not address.hostname:
        return ""
    try:
        context = ssl.create_default_context(cadata=said.authority or None)
        with (
            socket.create_connection((address.hostname, port), _SECONDS) as line,
            context.wrap_socket(line, server_hostname=address.hostname) as safe,
        ):
            found = safe.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        return f"certificate: no school believes the one at {said.url}: {error.verify_message}"
    except OSError:
        return ""
    end = str(found.get("notAfter", ""))
    days = int((ssl.cert_time_to_seconds(end) - time.time()) // 86400) if end else SOON_DAYS
    if days >= SOON_DAYS:
        return ""
    return f"certificate: the one at {said.url} ends in {days} days (renew it, reload nginx)"
