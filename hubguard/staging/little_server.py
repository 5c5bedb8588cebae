"""A single-user server as small as it gets: about 10 MB, up in a blink, answers 200 to everything below any prefix.

Run by path with ``python -S -E``, so it imports nothing but the standard library, and little of that. Its first and
only line on standard output, once it serves, is the port of the listening socket that it was handed as the file
descriptor ``LITTLE_LISTENER``. ``LITTLE_NAME`` in its environment is the name it answers with; where that is empty it
stands for many servers, and answers with the path it was asked for.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys

LONGEST_REQUEST = 1 << 20


def _wanted(head: bytes) -> int:
    """How many bytes of body the request announces; 0 where it doesn't say, or says nonsense."""
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"content-length" and value.strip().isdigit():
            return int(value)
    return 0


def _answer(head: bytes, name: str, version: str) -> bytes:
    words = head.split(b"\r\n", 1)[0].split()
    path = words[1].decode("latin-1") if len(words) > 1 else ""
    body = json.dumps({"name": name or path, "pid": os.getpid(), "path": path}).encode()
    lines = [
        "HTTP/1.1 200 OK",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
        f"X-JupyterHub-Version: {version}",
    ]
    if words and words[0] == b"HEAD":
        body = b""
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


class _Conversation:
    """What one client has sent so far."""

    def __init__(self) -> None:
        self.received = b""

    def take(self, data: bytes) -> bytes | None:
        """Add ``data``; the request's head once all of the request is there, else None."""
        self.received += data
        head, blank, body = self.received.partition(b"\r\n\r\n")
        if blank and len(body) >= _wanted(head):
            return head
        return None


def serve(name: str, version: str, listener: socket.socket) -> None:
    """Serve until SIGTERM. Never returns otherwise."""
    listener.setblocking(False)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    # Whoever started it may be gone by the time something is printed: nothing must ever go to that pipe again.
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)

    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    try:
                        client, _ = listener.accept()
                    except OSError:
                        continue
                    client.setblocking(False)
                    selector.register(client, selectors.EVENT_READ, _Conversation())
                    continue
                client = key.fileobj  # type: ignore[assignment]
                try:
                    data = client.recv(65536)
                    head = key.data.take(data)
                    if head is not None:
                        client.sendall(_answer(head, name, version))
                    elif data and len(key.data.received) < LONGEST_REQUEST:
                        continue
                except BlockingIOError:
                    continue
                except OSError:
                    pass
                selector.unregister(client)
                client.close()


if __name__ == "__main__":
    serve(
        os.environ.get("LITTLE_NAME", ""),
        os.environ.get("LITTLE_VERSION", ""),
        socket.socket(fileno=int(os.environ["LITTLE_LISTENER"])),
    )
