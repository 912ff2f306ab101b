"""The raw-socket limit: a bare epoll loop that sends ready lines, one send a socket and turn.

``python raw_peer.py server PORT CONTROL``. No protocol, no encoding, no backlog: what is
left is the price of the kernel.
"""

import importlib.util
import select
import socket
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def load(path):
    """Import a module of the benchmarks by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def listen(port):
    """Return a listening socket."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(1024)
    return listener


def main(port, control_port):
    """Serve for ever."""
    lines = load(HERE.parent / "rows.py").lines(2_000)
    chunks = {}
    listener, control = listen(port), listen(control_port)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    poll.register(control, select.EPOLLIN)
    readers, controls = {}, {}
    position = 0
    print("READY", flush=True)
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                reader, _ = listener.accept()
                readers[reader.fileno()] = reader
                reader.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                reader.sendall(b"POSITION events master 0 0\n")
                poll.register(reader, select.EPOLLIN)
            elif fd == control.fileno():
                connection, _ = control.accept()
                controls[connection.fileno()] = connection
                poll.register(connection, select.EPOLLIN)
            elif fd in controls:
                data = controls[fd].recv(65536)
                if not data:
                    return
                for order in data.split(b"\n")[:-1]:
                    turns, size = map(int, order.split()[:2])
                    if order.endswith(b"stamped"):
                        stamped = b'RDATA {"ts":%d}\n' % time.perf_counter_ns()
                        stamped *= (size + 1) // 2
                        for reader in readers.values():
                            reader.sendall(stamped)
                        continue
                    for _ in range(turns):
                        if (position, size) not in chunks:
                            chunks[position, size] = b"".join(lines[position : position + size])
                        chunk = chunks[position, size]
                        position = (position + size) % len(lines)
                        for reader in readers.values():
                            reader.sendall(chunk)
            elif not readers[fd].recv(65536):
                poll.unregister(fd)
                readers.pop(fd).close()


if __name__ == "__main__":
    main(int(sys.argv[2]), int(sys.argv[3]))
