"""A forwarder as enclave images bring one: two threads a connection, 1,024 bytes at a time.

forwarder.py PORT TO_PORT
"""
import socket
import sys
import threading


def carry(source, target):
    try:
        while data := source.recv(1024):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def main():
    port, to_port = map(int, sys.argv[1:])
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    while True:
        near, _ = listener.accept()
        far = socket.create_connection(("127.0.0.1", to_port))
        for pair in ((near, far), (far, near)):
            threading.Thread(target=carry, args=pair, daemon=True).start()


main()
