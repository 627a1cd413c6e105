"""The probe: which servers answer now. Asks for the SSH banner of all at once, logs in nowhere, waits for
nobody.

A thousand servers of which seven hundred are silent take about the time-out of one (facts/ansible.md 4.4).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import os
import resource
import socket
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

TIMEOUT_SECONDS = 2.0
AT_ONCE = 1000
RESOLVERS = 64  # look-ups of names at once
# A server may greet with a few lines before its banner (RFC 4253 4.2); this is room for a long legal notice.
MAX_GREETING = 16_384


@dataclass(frozen=True, slots=True)
class Target:
    """Where one server should answer."""

    name: str
    address: str
    port: int = 22


async def probe(
    targets: Iterable[Target], timeout: float = TIMEOUT_SECONDS, at_once: int = AT_ONCE
) -> dict[str, str]:
    """Given targets, return for each name "" if it answers as an SSH server, otherwise the reason in a few
    words.
    """
    targets = list(targets)
    names = await _resolve({target.address for target in targets}, timeout)
    room = asyncio.Semaphore(max(1, min(at_once, _open_files(at_once))))

    async def ask(target: Target) -> str:
        address, problem = names[target.address]
        if problem:
            return problem
        async with room:
            try:
                async with asyncio.timeout(timeout):
                    return await _banner(address, target.port)
            except TimeoutError:
                return f"no answer within {timeout:g} s"

    answers = await asyncio.gather(*(ask(target) for target in targets))
    return {target.name: answer for target, answer in zip(targets, answers, strict=True)}


def run_probe(targets: Sequence[Target], timeout: float = TIMEOUT_SECONDS) -> dict[str, str]:
    """Do `probe` from code that is not asynchronous."""
    return asyncio.run(probe(targets, timeout))


async def _resolve(names: Collection[str], timeout: float) -> dict[str, tuple[str, str]]:
    """Return (address, reason why there is none) of each name.

    Each name once, many at a time and before any connection: the few threads of the event loop would make
    those wait who answer.
    """
    loop = asyncio.get_running_loop()
    pool = ThreadPoolExecutor(RESOLVERS, thread_name_prefix="resolve")
    room = asyncio.Semaphore(RESOLVERS)

    async def one(name: str) -> tuple[str, str]:
        with contextlib.suppress(ValueError):
            return str(ipaddress.ip_address(name)), ""
        async with room:
            try:
                async with asyncio.timeout(timeout):
                    lookup = functools.partial(socket.getaddrinfo, name, None, type=socket.SOCK_STREAM)
                    return str((await loop.run_in_executor(pool, lookup))[0][4][0]), ""
            except TimeoutError:
                return name, f"its name was not found within {timeout:g} s"
            except (OSError, UnicodeError) as error:
                return name, _reason(error) if isinstance(error, OSError) else "its name cannot be looked up"

    try:
        found = await asyncio.gather(*(one(name) for name in names))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return dict(zip(names, found, strict=True))


async def _banner(address: str, port: int) -> str:  # noqa: PLR0911 - one reason after the other
    try:
        reader, writer = await asyncio.open_connection(address, port, limit=MAX_GREETING)
    except ConnectionRefusedError:
        return "connection refused"
    except OSError as error:
        return _reason(error)
    try:
        read = 0
        while read < MAX_GREETING:
            line = await reader.readline()
            read += len(line)
            if line.startswith(b"SSH-"):
                return ""
            if not line.endswith(b"\n"):
                return "closed the connection without an SSH banner"
        return "answers, but not as an SSH server"
    except ValueError:
        return "answers, but not as an SSH server"
    except OSError as error:
        return _reason(error)
    finally:
        writer.transport.abort()


def _reason(error: OSError) -> str:
    """Return the system's words for an error;
    asyncio joins those of several addresses into one text without number.
    """
    text = (error.strerror or str(error) or type(error).__name__).strip()
    if error.errno and text.lower().startswith("connect call failed"):  # asyncio's words
        text = os.strerror(error.errno)
    if "refused" in text.lower() or "Errno 111" in text:
        return "connection refused"
    return text[0].lower() + text[1:]


def _open_files(wanted: int) -> int:
    """Raise the soft limit of open files as far as allowed and return how many connections fit below it."""
    spare = 64  # for everything else this process has open
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted + spare:
        soft = wanted + spare if hard == resource.RLIM_INFINITY else min(wanted + spare, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft - spare
