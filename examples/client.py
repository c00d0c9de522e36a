#!/usr/bin/env python3
"""A client of OSPS: client.py HOST:PORT TYPE MESSAGE [--follow]"""
import socket
import sys


def exchange(host, port, message):
    """Sends all of a message on a data connection, and returns all that is answered."""
    with socket.create_connection((host, port), timeout=60) as data:
        data.sendall(message)
        data.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: data.recv(4096), b""))


def main(address, kind, message, follow=None):
    host, _, port = address.rpartition(":")
    message = message.encode()
    with socket.create_connection((host.strip("[]"), int(port)), timeout=60) as control:
        news = control.makefile(encoding="ascii")
        control.sendall(f"{'suivi ' if follow else ''}{kind}\n".encode())
        answer = news.readline().strip()  # "2223", "2223 JETON" or "-1 REASON"
        port, _, rest = answer.partition(" ")
        if port in ("", "-1"):
            sys.exit(f"refused: {rest or 'the server has closed'}")
        if follow:
            message = f"jeton {rest}\n".encode() + message
        sys.stdout.buffer.write(exchange(host.strip("[]"), int(port), message))
        for line in news if follow else ():
            print(line.strip(), file=sys.stderr)
            if line.startswith(("fintraitement", "errtraitement")):
                sys.exit(line.startswith("err"))


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) > 3 else sys.exit(__doc__)
