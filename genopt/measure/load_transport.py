"""HTTP connections of a load test: as many as there are requests under way, and none that waits for another.

One pool for all would walk over all its connections whenever a request begins or ends; with a hundred streams that alone
takes a core, and new requests wait for seconds inside the client. So every request has a pool of one connection to itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import httpx

CONNECT_S = 10.0


class Lanes(httpx.AsyncBaseTransport):
    """Sends each request over a connection that no other uses meanwhile, and keeps it for a later one; proxies are not used."""

    def __init__(self) -> None:
        self._context = httpx.create_ssl_context()
        self._lanes: list[httpx.AsyncHTTPTransport] = []
        self._free: list[httpx.AsyncHTTPTransport] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See `httpx.AsyncBaseTransport`."""
        lane = self._free.pop() if self._free else self._opened()
        try:
            response = await lane.handle_async_request(request)
        except BaseException:
            self._free.append(lane)
            raise
        stream = _Returning(response, lambda: self._free.append(lane))
        return httpx.Response(response.status_code, headers=response.headers, stream=stream, extensions=response.extensions)

    async def aclose(self) -> None:
        """Closes all connections."""
        for lane in self._lanes:
            await lane.aclose()

    def _opened(self) -> httpx.AsyncHTTPTransport:
        self._lanes.append(httpx.AsyncHTTPTransport(verify=self._context, limits=httpx.Limits(keepalive_expiry=None)))
        return self._lanes[-1]


class _Returning(httpx.AsyncByteStream):
    """A body that gives its lane back, once, when it is closed."""

    def __init__(self, response: httpx.Response, give_back: Callable[[], None]) -> None:
        self._response = response
        self._give_back: Callable[[], None] | None = give_back

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._response.aiter_raw():
            yield part

    async def aclose(self) -> None:
        await self._response.aclose()
        if self._give_back is not None:
            self._give_back()
            self._give_back = None


def open_client(*, key: str | None, transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
    """An HTTP client that never makes a request wait for a connection and never lets a server compress, and so hold back, text.

    Args:
        key: Sent as a bearer token.
        transport: Instead of the network, for tests.
    """
    headers = {"accept-encoding": "identity", **({"authorization": f"Bearer {key}"} if key else {})}
    # Beyond connecting, a request's time is bounded by the load test itself.
    return httpx.AsyncClient(headers=headers, timeout=httpx.Timeout(None, connect=CONNECT_S), transport=transport or Lanes())
