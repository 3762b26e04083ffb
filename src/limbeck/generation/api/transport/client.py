"""A thin HTTP client on aiohttp: one POST, the exact bytes out, the exact bytes in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limbeck.errors import MachineError
from limbeck.generation.api.transport.faults import Fault, FaultKind, one_line

if TYPE_CHECKING:
    import aiohttp

CONNECT_SECONDS = 30.0


@dataclass(frozen=True)
class Reply:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    raw: bytes


def import_aiohttp() -> Any:
    """aiohttp, or an error that names the extra."""
    try:
        import aiohttp
    except ImportError as error:
        raise MachineError(
            "teachers behind an API need the package aiohttp", fix='Install it: pip install "limbeck[api]".'
        ) from error
    return aiohttp


class Client:
    """A pool of connections. An asynchronous context manager."""

    _session: aiohttp.ClientSession

    async def __aenter__(self) -> Client:
        aiohttp = import_aiohttp()
        self._aiohttp = aiohttp
        proxied = any(os.environ.get(name) for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"))
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "limbeck", "Content-Type": "application/json"},
            trust_env=proxied,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, seconds: float) -> Reply | Fault:
        """Send ``body`` and read the whole answer; see :meth:`send`."""
        return await self.send(url, headers, body, seconds)

    async def send(self, url: str, headers: Mapping[str, str], body: bytes | None, seconds: float) -> Reply | Fault:
        """POST ``body``, or GET where there is none, and read the whole answer.

        Redirects are not followed: they would carry the key elsewhere.

        Returns:
            The answer, whatever its status; or a fault of the connection, which says whether the request may have
            reached the server.
        """
        aiohttp = self._aiohttp
        limits = aiohttp.ClientTimeout(total=max(seconds, 0.001), sock_connect=CONNECT_SECONDS)
        try:
            async with self._session.request(
                "GET" if body is None else "POST",
                url,
                data=body,
                headers=headers,
                timeout=limits,
                allow_redirects=False,
            ) as response:
                return Reply(response.status, response.headers, await response.read())
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientSSLError) as error:
            return Fault(FaultKind.UNREACHABLE, _said(error))
        except aiohttp.ClientConnectorError as error:
            # Its own text has "ssl:default" and addresses of each try in it.
            why = one_line(error.os_error.strerror or "") or type(error).__name__
            why = "" if "Connect call failed" in why else f": {why}"
            return Fault(FaultKind.UNREACHABLE, f"cannot connect to {error.host}:{error.port}{why}")
        except aiohttp.InvalidURL as error:
            return Fault(FaultKind.WITHDRAWN, f"not a URL: {_said(error)}")
        except TimeoutError:
            return Fault(FaultKind.LATE, f"no answer within {seconds:.0f} s", maybe_served=True)
        except (aiohttp.ClientError, OSError) as error:
            return Fault(FaultKind.CUT, _said(error), maybe_served=True)


def _said(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {error}")
