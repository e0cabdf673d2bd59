"""Runs one program as a child and stands aside: signals go in, the exit status comes out.

The child stays in the caller's process group, so what the terminal sends reaches it by itself; only
signals sent to this process alone are passed on.
"""

import errno
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from udedup import program

FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGTSTP,
    signal.SIGCONT,
)
_FROM_KERNEL = 0x80  # si_code SI_KERNEL: the terminal sent it, to the whole process group
_JOB_STOPS = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
NOT_FOUND = 127
NOT_EXECUTABLE = 126

# What the caller ignores (nohup, background jobs of sh) the child must find ignored.
_sigint_before = signal.SIG_IGN if signal.getsignal(signal.SIGINT) == signal.SIG_IGN else signal.SIG_DFL
_sigchld_before = signal.SIG_IGN if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN else signal.SIG_DFL


class Child:
    """A started program. `status` is None until it has ended, then as from waitpid."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None

    def supervise(self, tick: Callable[[], None], seconds: float = 1.0) -> int:
        """Waits for the end, passing signals on; calls `tick` about every `seconds`.

        Returns the wait status. The signals must be blocked, as start() leaves them.
        """
        watched = {*FORWARDED, signal.SIGCHLD}
        while self.status is None:
            info = signal.sigtimedwait(watched, seconds)
            if info is None:
                tick()
            elif info.si_signo == signal.SIGCHLD:
                self._reap()
            elif info.si_code != _FROM_KERNEL:
                self._send(info.si_signo)
        return self.status

    def _reap(self) -> None:
        while self.status is None:  # several changes may hide behind one SIGCHLD
            pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
            if pid == 0:
                return
            if not os.WIFSTOPPED(status):
                self.status = status
            elif os.WSTOPSIG(status) in _JOB_STOPS:
                # The shell watches this process: stop with the child, and wake it when woken.
                os.kill(os.getpid(), signal.SIGSTOP)
                self._send(signal.SIGCONT)

    def _send(self, signo: int) -> None:
        try:
            os.kill(self.pid, signo)
        except ProcessLookupError:
            pass


def start(argv: Sequence[str], env: Mapping[str, str], prepare: Callable[[], None]) -> Child | OSError:
    """Forks and executes `argv`; `prepare` runs in the child before exec. An OSError if exec fails."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
    told, tell = os.pipe2(os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would take the exit status away
    pid = os.fork()
    if pid == 0:
        _exec(argv, env, prepare, tell, blocked)
    os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        failed = pipe.read()
    if failed:
        os.waitpid(pid, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        number = int(failed)
        return OSError(number, os.strerror(number))
    return Child(pid)


def _exec(
    argv: Sequence[str], env: Mapping[str, str], prepare: Callable[[], None], tell: int, mask: set[int]
) -> NoReturn:
    number = errno.EINVAL
    try:
        prepare()
        signal.signal(signal.SIGINT, _sigint_before)
        signal.signal(signal.SIGCHLD, _sigchld_before)
        for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(ignored_by_python, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.execvpe(argv[0], list(argv), dict(env))
    except OSError as error:
        number = error.errno or errno.EINVAL
    finally:
        os.write(tell, str(number).encode())
        os._exit(NOT_FOUND)


def failure(command: str, error: OSError) -> tuple[int, str]:
    """Exit status and one line for a program that could not be executed, as the shell has them."""
    # exec says EACCES, too, when PATH has a folder that this user may not enter.
    if isinstance(error, FileNotFoundError) or program.find(command) is None:
        if "/" in command and Path(command).exists():
            return NOT_FOUND, f"{command}: its interpreter does not exist; see `file {command}`"
        return NOT_FOUND, f"{command}: no such program; check the name and PATH"
    if error.errno == errno.ENOEXEC:
        return NOT_EXECUTABLE, f"{command}: not a program; does it lack a #! line?"
    if Path(command).is_dir():
        return NOT_EXECUTABLE, f"{command}: is a directory; give a program"
    return NOT_EXECUTABLE, f"{command}: {error.strerror}; check that you may execute it (chmod +x)"


def leave_as(status: int) -> NoReturn:
    """Ends this process as the child ended: same exit status, or killed by the same signal."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # None where the caller has closed it
            stream.flush()
    if os.WIFSIGNALED(status):
        signo = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        if signo not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(signo, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signo})
        os.kill(os.getpid(), signo)
        os._exit(128 + signo)
    os._exit(os.WEXITSTATUS(status))
