"""HTTP requests with limits on size, total time, redirects and the server's address.

URLs in data may be untrusted: a server must not be able to fill this process's memory, block it forever, or make it
send requests to its own network.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

BLOCK = 2**16
HEADERS = {"User-Agent": "vlm_grpo"}
NAT64 = ipaddress.ip_network("64:ff9b::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Limits:
    """Limits of a request.

    Attributes:
        size: maximum number of bytes of the response.
        seconds: total time, including redirects.
        redirects: maximum number of redirects; each address is checked like the first one.
        private: allow servers on this machine and in private networks.
    """

    size: int = 64 * 2**20
    seconds: float = 60.0
    redirects: int = 5
    private: bool = False


class WebError(OSError):
    """A server returned no acceptable content."""


class TooLargeError(WebError):
    """The response is larger than allowed."""


class PrivateAddressError(WebError):
    """The server is on this machine or in a private network."""


def fetch_bytes(request: str | urllib.request.Request, limits: Limits | None = None) -> bytes:
    """Return the content of a URL, or of the response to a request.

    The request runs in its own thread, because a server that sends its headers byte by byte evades the timeouts of a
    socket. When the time is up, its connection is closed.

    Raises:
        urllib.error.HTTPError: the server reports an error, or there are too many redirects.
        TimeoutError: it is not there in time.
        TooLargeError, PrivateAddressError: the content is too large, or the address is private.
        OSError, http.client.HTTPException: the request failed.
    """
    exchange = _Exchange(limits or Limits())
    thread = threading.Thread(target=exchange.run, args=(request,), daemon=True, name="fetch")
    thread.start()
    thread.join(exchange.limits.seconds)
    if thread.is_alive():
        exchange.close()
        raise TimeoutError(f"not there within {exchange.limits.seconds:g} s")
    if exchange.failure is not None:
        raise exchange.failure
    return bytes(exchange.body)


def fetch_url(url: str, limits: Limits | None = None) -> bytes:
    """Return the content of a URL in the data; every error has a readable message.

    Raises:
        WebError: the content is not available or not acceptable.
        TimeoutError: it is not there in time.
    """
    try:
        return fetch_bytes(urllib.request.Request(url, headers=HEADERS), limits)
    except urllib.error.HTTPError as error:
        error.close()
        hint = ", a redirect too many" if error.code in (301, 302, 303, 307, 308) else ""
        raise WebError(f"the server says {error.code} {error.reason}{hint}") from error
    except (WebError, TimeoutError):
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        why = getattr(error, "reason", None) or error
        raise WebError(f"no connection: {why if str(why) else type(why).__name__}") from error


@dataclass
class _Exchange:
    """A request in its own thread: its connections and its outcome."""

    limits: Limits
    body: bytearray = field(default_factory=bytearray)
    failure: BaseException | None = None
    sockets: list[socket.socket] = field(default_factory=list)
    is_over: bool = False

    def run(self, request: str | urllib.request.Request) -> None:
        """Fetch `body`, or store the error in `failure`."""
        self.end = time.monotonic() + self.limits.seconds
        try:
            opener = _opener(self)
            with opener.open(request, timeout=self.limits.seconds) as stream:
                self._read(stream)
        except Exception as error:
            reason = getattr(error, "reason", None)
            is_ours = isinstance(reason, WebError | TimeoutError)
            self.failure = reason if is_ours and not isinstance(error, urllib.error.HTTPError) else error

    def _read(self, stream: http.client.HTTPResponse) -> None:
        while block := stream.read1(BLOCK):
            self.body += block
            if len(self.body) > self.limits.size:
                self.body.clear()
                raise TooLargeError(f"over {_size(self.limits.size)}")
            if self.is_over or time.monotonic() > self.end:
                raise TimeoutError(f"not there within {self.limits.seconds:g} s")
        if stream.length:  # the connection was closed before the end, which read1 does not notice
            raise http.client.IncompleteRead(bytes(self.body), stream.length)

    def connect(self, address: tuple[str, int], timeout: float | None) -> socket.socket:
        """Return a connection to a server, at exactly the address that was checked."""
        infos = _addresses(*address, private=self.limits.private)
        failure: OSError = OSError("no address")
        for family, kind, protocol, _, place in infos:
            connection = socket.socket(family, kind, protocol)
            self.sockets.append(connection)
            try:
                left = self.end - time.monotonic()
                connection.settimeout(max(0.01, left if timeout is None else min(timeout, left)))
                connection.connect(place)
                return connection
            except OSError as error:
                connection.close()
                failure = error
        raise failure

    def close(self) -> None:
        """Close open connections."""
        self.is_over = True
        for connection in self.sockets:
            with suppress(OSError):  # already closed
                connection.shutdown(socket.SHUT_RDWR)


# A result of socket.getaddrinfo: family, kind, protocol, canonical name, and address.
AddressInfo = tuple[
    socket.AddressFamily, socket.SocketKind, int, str, "tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]"
]


def _size(number: int) -> str:
    return f"{number // 2**20} MiB" if number >= 2**20 else f"{number} bytes"


def _addresses(host: str, port: int, *, private: bool) -> list[AddressInfo]:
    """Resolve a host name.

    Raises:
        PrivateAddressError: one of its addresses is on this machine or in a private network.
    """
    infos: list[AddressInfo] = [*socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for *_, place in infos:
        if not private and is_private(str(place[0])):
            raise PrivateAddressError(f"{host} is private, {place[0]} (--allow_private_urls allows it)")
    return infos


def is_private(text: str) -> bool:
    """Return whether an IP address is not public: loopback, private, link-local, multicast, or reserved."""
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        address = inner or address
    return not address.is_global or address.is_multicast


def _opener(exchange: _Exchange) -> urllib.request.OpenerDirector:
    """Return an opener for http and https only, with the proxies of the environment."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Handler(exchange),
        _Redirects(exchange.limits.redirects),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a limited number of redirects; one more is an HTTPError."""

    def __init__(self, left: int) -> None:
        self.left = left

    def redirect_request(self, *arguments: Any) -> urllib.request.Request | None:
        self.left -= 1
        return None if self.left < 0 else super().redirect_request(*arguments)


class _Handler(urllib.request.AbstractHTTPHandler):
    """Opens http and https URLs through the connections of an exchange."""

    def __init__(self, exchange: _Exchange) -> None:
        super().__init__()
        self.exchange = exchange

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._kind(request, _Http, http.client.HTTPConnection), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._kind(request, _Https, http.client.HTTPSConnection), request)

    def _kind(
        self, request: urllib.request.Request, guarded: Callable[..., HTTPConnection], plain: type[HTTPConnection]
    ) -> Callable[..., HTTPConnection]:
        """Return the class of a connection. Behind a proxy, only the host name is checked."""
        parts = urlsplit(request.full_url)
        if request.host == parts.netloc:
            return partial(guarded, connect_to=self.exchange.connect)
        with suppress(socket.gaierror):  # the proxy may resolve names that this machine cannot
            _addresses(parts.hostname or "", parts.port or 0, private=self.exchange.limits.private)
        return plain


Connect = Callable[[tuple[str, int], "float | None"], socket.socket]


class _Http(http.client.HTTPConnection):
    def __init__(self, host: str, *, connect_to: Connect, **options: Any) -> None:
        super().__init__(host, **options)
        self.connect_to = connect_to

    def connect(self) -> None:
        self.sock = self.connect_to((self.host, self.port), self.timeout)


class _Https(http.client.HTTPSConnection):
    def __init__(self, host: str, *, connect_to: Connect, **options: Any) -> None:
        self.verified = ssl.create_default_context()
        super().__init__(host, context=self.verified, **options)
        self.connect_to = connect_to

    def connect(self) -> None:
        plain = self.connect_to((self.host, self.port), self.timeout)
        self.sock = self.verified.wrap_socket(plain, server_hostname=self.host)
