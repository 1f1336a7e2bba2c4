"""What a collector that never reads costs a request: the median time with one, and with one that reads.

log_pipe.py TEEMARKD [REQUESTS]

Each request writes a line of the log and does nothing else, so its time is the shortest that a wait could hide in. The
daemon with the unread stream is measured once it drops records: then the sockets and its own memory are full. Rounds take
turns between both daemons, and the smaller median of each counts.
"""
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROUNDS = 10


def port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Daemon:
    def __init__(self, program, reads):
        self.folder = tempfile.TemporaryDirectory()
        self.collector = socket.create_server(("127.0.0.1", 0))
        self.admin = port()
        self.public = port()
        with open(f"{self.folder.name}/endpoints", "w") as file:
            file.write("endpoints:\n  - localhost:443\n")
        own = {
            "TEEMARK_PUBLIC": f"tcp:127.0.0.1:{self.public}",
            "TEEMARK_ADMIN": f"tcp:127.0.0.1:{self.admin}",
            "TEEMARK_SECRETS": f"unix:{self.folder.name}/secrets.sock",
            "TEEMARK_CERTS": f"{self.folder.name}/certs",
            "TEEMARK_ENDPOINTS": f"{self.folder.name}/endpoints",
            "TEEMARK_EGRESS": "direct",
            "TEEMARK_HANDSHAKE": "plain",
            "TEEMARK_GRANTS": "off",
            "TEEMARK_LOG_TO": f"tcp:127.0.0.1:{self.collector.getsockname()[1]}",
            "RUST_LOG": "debug",
        }
        self.process = subprocess.Popen([program], env=os.environ | own, stderr=subprocess.DEVNULL)
        self.stream, _ = self.collector.accept()
        if reads:
            threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        while self.stream.recv(1 << 20):
            pass

    def connect(self, port):
        for _ in range(1000):
            try:
                client = socket.create_connection(("127.0.0.1", port))
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return client
            except ConnectionRefusedError:
                time.sleep(0.01)
        sys.exit(f"{self.process.args} does not listen")

    def ask(self, times):
        """The median time of so many requests, in microseconds."""
        took = []
        # A connection of its own: one that is idle for long is closed.
        with self.connect(self.public) as client:
            for _ in range(times):
                start = time.perf_counter()
                client.sendall(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = client.recv(4096)
                if not answer.startswith(b"HTTP/1.1 404"):
                    sys.exit(f"not the answer that was expected: {answer}")
                took.append(time.perf_counter() - start)
        return statistics.median(took) * 1e6

    def dropped(self):
        with self.connect(self.admin) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            text = b"".join(iter(lambda: client.recv(1 << 16), b""))
        return int(re.search(rb"^teemark_log_lines_dropped_total (\d+)", text, re.M)[1])


def main():
    program, requests = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2000
    full, read = Daemon(program, False), Daemon(program, True)
    try:
        while not full.dropped():
            full.ask(1000)
        read.ask(1000)
        times = [(full.ask(requests), read.ask(requests)) for _ in range(ROUNDS)]
        if read.dropped():
            sys.exit("the collector that reads was too slow: records were dropped")
        print(f"records dropped with the full pipe: {full.dropped()}")
    finally:
        for daemon in (full, read):
            daemon.process.terminate()
            daemon.process.wait()
    best_full, best_read = map(min, zip(*times))
    print(f"p50 with a full pipe {best_full:.0f} us, with one that is read {best_read:.0f} us: {best_full / best_read:.2f}")


main()
