"""Becomes a backend program that cannot outlive its worker: `python -I -S launcher.py WORKER_PID -- COMMAND...`.

This is a separate program because the kernel ties "die with your parent" to the child (PR_SET_PDEATHSIG) and keeps it
across exec. So a foreign backend gets it without knowing (H13). It uses the standard library only, since it runs
without site-packages.
"""

import ctypes
import os
import signal
import sys
from typing import Final, NoReturn

PR_SET_PDEATHSIG: Final = 1
EXIT_NOT_STARTED: Final = 127
"""The exit code of a shell for "no such command"."""


def main(arguments: list[str]) -> NoReturn:
    """Replaces this process with the command of `[WORKER_PID, "--", COMMAND...]`. Exits with 127 if it cannot."""
    worker_pid, command = int(arguments[0]), arguments[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != worker_pid:
        # The parent died before the line above could take effect.
        sys.exit(EXIT_NOT_STARTED)
    # Python ignores these signals, and ignored signals stay ignored across exec.
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)  # noqa: S606 - the operator's own command, and a shell is not wanted
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]!r}: {error.strerror}\n")
        sys.exit(EXIT_NOT_STARTED)


if __name__ == "__main__":
    main(sys.argv[1:])
