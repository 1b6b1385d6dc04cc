"""Run the API on a socket that the parent process has bound.

A restarted API goes on with the same socket: clients wait in its queue, no port is lost to others.
(`uvicorn --fd` would take it for a unix socket and leave Nagle's delays on.)
"""

import socket
import sys

import uvicorn


def main() -> None:
    """Serve until told to stop; the argument is the number of the socket's file descriptor."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    config = uvicorn.Config(
        "app.main:create_app",
        factory=True,
        server_header=False,
        timeout_graceful_shutdown=5,
        log_config=None,  # the application sets up its own logs
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
