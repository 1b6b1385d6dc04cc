"""Run a command that dies with the process that started it.

Started as a file of its own (`python -I -S tether.py ...`): it replaces itself by the command, so
it needs nothing but the standard library. A `preexec_fn` would do the same less safely: the
starting process has threads.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
NOBODY = 65534


def die_with_parent(signum: signal.Signals, parent: int) -> None:
    """Ask the kernel to send `signum` when the thread that started this process ends.

    Raises:
        OSError: The kernel does not know the request (no Linux).
        ProcessLookupError: The parent has died already, before it could be asked.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signum), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        raise ProcessLookupError(f"process {parent}, which started this one, is gone")


def become_nobody() -> None:
    """Enter a user namespace in which root looks like an ordinary user.

    PostgreSQL refuses to run as root. Here it sees the uid 65534, while its files stay root's:
    no account has to exist and no owner has to change.

    Raises:
        OSError: The kernel forbids user namespaces.
    """
    user, group = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER) != 0:
        code = ctypes.get_errno()
        raise OSError(
            code,
            f"{os.strerror(code)}: PostgreSQL does not run as root, and this kernel or container"
            " forbids the user namespace that would hide it; run as an ordinary user or set"
            " DATABASE_URL",
        )
    process = Path("/proc/self")
    process.joinpath("setgroups").write_text("deny")  # the kernel asks for it before a gid_map
    process.joinpath("uid_map").write_text(f"{NOBODY} {user} 1")
    process.joinpath("gid_map").write_text(f"{NOBODY} {group} 1")


def command(
    *arguments: str | os.PathLike[str], signum: signal.Signals, as_nobody: bool = False
) -> list[str]:
    """Return the command line that runs `arguments` tethered to the calling process."""
    return [
        sys.executable,
        "-I",
        "-S",
        __file__,
        signum.name,
        str(os.getpid()),
        "nobody" if as_nobody else "self",
        *(os.fspath(argument) for argument in arguments),
    ]


def main() -> None:
    """Tether this process to its parent, then become the command that was asked for."""
    signal_name, parent, user, *arguments = sys.argv[1:]
    try:
        if user == "nobody":
            become_nobody()
        # After the namespace: a change of credentials clears the parent-death signal.
        die_with_parent(signal.Signals[signal_name], int(parent))
        os.execvp(arguments[0], arguments)  # noqa: S606 - the launcher's own command
    except OSError as error:
        sys.exit(f"cannot start {arguments[0]}: {error}")


if __name__ == "__main__":
    main()
