"""A client for the HTTP servers of the comparison: kept connections and no library, so that it costs them little."""

from __future__ import annotations

import pickle
import selectors
import socket
from typing import Any


class Connection:
    """One kept connection; one request at a time."""

    def __init__(self, address: str | tuple[str, int]) -> None:
        """Connect: to a unix socket's path, or to a host and port."""
        if isinstance(address, str):
            self._socket = socket.socket(socket.AF_UNIX)
        else:
            self._socket = socket.socket()
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(30)
        try:
            self._socket.connect(address)
        except OSError:
            self._socket.close()
            raise
        self._rest = b""

    def fileno(self) -> int:
        """Return the descriptor, to be polled."""
        return self._socket.fileno()

    def send(self, body: bytes) -> None:
        """Send a request."""
        head = f"POST /inference HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        self._socket.sendall(head + body)

    def receive(self) -> Any:
        """Return the answer.

        Raises:
            ConnectionError: it is not a success.
        """
        data = self._rest
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._more()
        head, body = data[:end].lower(), data[end + 4 :]
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        pieces, missing = [body], length - len(body)
        while missing > 0:
            pieces.append(self._more())
            missing -= len(pieces[-1])
        whole = b"".join(pieces)
        self._rest = whole[length:]
        if b" 200 " not in head.split(b"\r\n")[0]:
            raise ConnectionError(head.decode("latin-1") + whole[:500].decode("utf-8", "replace"))
        return pickle.loads(whole[:length])

    def _more(self) -> bytes:
        data = self._socket.recv(1 << 20)
        if not data:
            raise ConnectionError("the server closed the connection")
        return data

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def in_flight(address: str | tuple[str, int], body: bytes, depth: int, count: int) -> None:
    """Send ``count`` requests over ``depth`` connections, each with one request under way."""
    selector = selectors.DefaultSelector()
    connections = [Connection(address) for _ in range(depth)]
    try:
        for at, connection in enumerate(connections):
            selector.register(connection, selectors.EVENT_READ, at)
        sent = min(depth, count)
        for connection in connections[:sent]:
            connection.send(body)
        done = 0
        while done < count:
            for key, _mask in selector.select():
                connection = connections[key.data]
                connection.receive()
                done += 1
                if sent < count:
                    sent += 1
                    connection.send(body)
    finally:
        selector.close()
        for connection in connections:
            connection.close()
