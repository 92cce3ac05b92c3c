"""HTTP connections that no server can hold open: slow ones are closed, redirects read nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

from requests import PreparedRequest, Response, Session
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError


class SlowError(OSError):
    """A server sends less than the minimum; `received`: whether it sends anything of the file."""

    def __init__(self, received: bool):
        super().__init__("the server is too slow")
        self.received = received


class BoundedSession(Session):
    """A session that closes its connections when fewer than `least` bytes come in `window` s.

    The headers count too, and so does what http.client reads without returning, such as trailers:
    a limit between two bytes, as requests has it, lets a server send one byte a minute for ever.
    Leaving the session then raises SlowError, since the end of a closed connection may look like
    the end of a file.

    Parameters
    ----------
    window
        Seconds over which bytes are counted.
    least
        Bytes of the file that must arrive in each window, reported to `received`.
    """

    def __init__(self, window: float, least: float):
        super().__init__()
        self.window, self.least = window, least
        self._sockets: list[socket.socket] = []
        self._count, self._before, self._is_slow = 0, 0, False
        self._finished = threading.Event()
        for prefix in ("http://", "https://"):
            self.mount(prefix, _Adapter(self._opened))

    def __enter__(self) -> BoundedSession:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *args: Any) -> None:
        kind = args[0]
        self.finish()
        self.close()
        if self._is_slow and (kind is None or issubclass(kind, Exception)):
            raise SlowError(self._count > self._before)

    def received(self, count: int) -> None:
        """Report bytes of the file that arrived."""
        self._count += count

    def finish(self) -> None:
        """End the watch: the last byte has arrived, and the disk may take its time."""
        self._finished.set()

    def _watch(self) -> None:
        tick, waited = min(1.0, self.window / 5), 0.0
        while not self._finished.wait(tick):
            waited += tick  # not the clock: the server is not slow while this process is stopped
            if waited < self.window:
                continue
            if self._count - self._before < self.least:
                self._is_slow = True
                for one in list(self._sockets):
                    _shut(one)
                return
            waited, self._before = 0.0, self._count

    def _opened(self, connection: socket.socket) -> None:
        self._sockets.append(connection)
        if self._is_slow:
            _shut(connection)


def is_unreachable(error: Exception) -> bool:
    """Return whether no connection to the server, or to its proxy, could be opened."""
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    reason = getattr(reason, "original_error", reason)
    return isinstance(reason, NewConnectionError | ConnectTimeoutError)


class _Adapter(HTTPAdapter):
    """Reports the socket of each connection, and leaves the bodies of redirects unread."""

    def __init__(self, opened: Callable[[socket.socket], None]):
        super().__init__()
        self.opened = opened

    def get_connection_with_tls_context(self, *args: Any, **named: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **named)
        usual, opened = pool.ConnectionCls, self.opened

        class Reporting(usual):  # type: ignore[misc, valid-type]
            def connect(self) -> None:
                super().connect()
                opened(self.sock)

        pool.ConnectionCls = Reporting
        return pool

    def send(self, request: PreparedRequest, *args: Any, **named: Any) -> Response:
        reply = super().send(request, *args, **named)
        if reply.is_redirect:  # requests would read and unpack all of its body into memory
            reply.raw.close()
            reply._content = b""
        return reply


def _shut(connection: socket.socket) -> None:
    """End a connection, so that a thread that reads from it continues."""
    with contextlib.suppress(OSError):  # it is closed already
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # below TLS, which would wait
