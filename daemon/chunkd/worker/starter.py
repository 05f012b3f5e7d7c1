"""The starter: one process that starts every other one, and never opens a blob.

A process that the daemon starts inherits its descriptors and closes them before it begins, which never ends for a blob
whose file system does not answer. So the starter is started before the first blob is opened. It forks itself for each
worker, and for each other program that the daemon needs, which is safe here: it has one thread, and no LMDB.

`python -m chunkd.worker.starter FD NICE IO_PRIORITY PARAMS CAPS MEASURE BYTES_PER_S` takes requests over the connection
FD and ends when the daemon has gone. Its workers then end too, each by the end of its own connection.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import select
import signal
import socket
import struct
import sys

# A request: a process's number, and what to do. To start one comes with its end of its connection. One that is to RUN
# is not a worker: the first line that it is sent is JSON, in which `module` is the module with its `main`.
REQUEST = struct.Struct("=Ic")
START, RUN, KILL = b"s", b"r", b"k"
# A reply: the process's number, what happened, and its process id, its exit code (negative for a signal) or an errno.
REPLY = struct.Struct("=Ici")
STARTED, ENDED, REFUSED = b"s", b"e", b"r"
RUN_NICE = 5


def main(argv: list[str]) -> None:
    """Start processes until the daemon has gone. In a worker, serve its jobs."""
    fd, nice, io_priority, *settings = argv
    # The daemon decides what Ctrl-C means, and the starter ends with its connection only.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Before the first fork, so that all workers share the memory that these take. The daemon needs neither.
    from chunkd.worker import examine, priority

    what, connection = _serve(socket.socket(fileno=int(fd)))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    if what == RUN:
        # Somebody waits for it. So it gives way to the daemon, and not to all that a busy machine does.
        priority.ask_of(os.getpid(), min(int(nice), RUN_NICE), "normal")
        _run(socket.socket(fileno=connection))
        return
    priority.ask_of(os.getpid(), int(nice), io_priority)
    examine.main([str(connection), *settings])


def _run(connection: socket.socket) -> None:
    with connection:
        line = b""
        # Byte by byte: what follows the line is for `main`, with the descriptors that come with it.
        while not line.endswith(b"\n") and (part := connection.recv(1)):
            line += part
        asked = json.loads(line)
        importlib.import_module(asked["module"]).main(connection, asked)


def _serve(daemon: socket.socket) -> tuple[bytes, int]:
    """Do what the daemon asks for, and tell it of each process that ends. Exits when the daemon has gone.

    Returns in a new process only, with what it is for and the descriptor of its connection.
    """
    processes: dict[int, int] = {}  # process ids, by number; of those alone that were not waited for yet
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler the pipe is not written to
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    while True:
        ready, _, _ = select.select([daemon.fileno(), woken], [], [])
        try:
            if woken in ready:
                os.read(woken, select.PIPE_BUF)
                _reap(daemon, processes)
            if daemon.fileno() not in ready:
                continue
            asked, descriptors, _, _ = socket.recv_fds(daemon, REQUEST.size, 1)
        except ConnectionError:
            asked = b""
        if not asked:
            sys.exit(0)
        number, what = REQUEST.unpack(asked)
        if what == KILL:
            if number in processes:
                os.kill(processes[number], signal.SIGKILL)
            continue
        pid = _fork(daemon, number, descriptors)
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            daemon.close()
            os.close(woken)
            os.close(wake)
            return what, descriptors[0]
        if pid is not None:
            processes[number] = pid
        for descriptor in descriptors:
            os.close(descriptor)


def _fork(daemon: socket.socket, number: int, descriptors: list[int]) -> int | None:
    """A new process's id; 0 in that process; None, of which the daemon is told, when the system refuses one."""
    try:
        if not descriptors:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        pid = os.fork()
    except OSError as error:
        daemon.sendall(REPLY.pack(number, REFUSED, error.errno))
        return None
    if pid:
        daemon.sendall(REPLY.pack(number, STARTED, pid))
    return pid


def _reap(daemon: socket.socket, processes: dict[int, int]) -> None:
    for number, pid in list(processes.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            del processes[number]
            daemon.sendall(REPLY.pack(number, ENDED, os.waitstatus_to_exitcode(status)))


if __name__ == "__main__":
    main(sys.argv[1:])
