"""What a process that sees samples and keys does first."""

import ctypes
import os
import resource

PR_SET_DUMPABLE = 4


def forbid_core_dumps() -> None:
    """Let no crash write this process's memory to a disk: it holds samples and keys in clear.

    The limit holds for files, and for the processes that this one starts. A handler that the kernel
    pipes dumps to does not know it, so the process is marked as well; nobody but root may then read
    its memory either.

    Raises:
        OSError: The kernel refused.
    """
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "prctl(PR_SET_DUMPABLE)")
