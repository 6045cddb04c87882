"""A port for a server that a test starts."""

import contextlib
import random
import socket

_ANY = random.SystemRandom()  # pytest's workers must not draw the same ones


def free_port():
    """Return a port on which nothing listens, below those that the system gives to clients and for port 0 (32768 on).

    One of these may be given away between being found and being bound, seconds later.
    """
    while True:
        port = _ANY.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
