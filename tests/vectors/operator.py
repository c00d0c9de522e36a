#!/usr/bin/env python3
"""Does to an OSPS what transcripts ask of an operator; the test fills in who and where."""
import os, signal, socket, sys

if sys.argv[1] == "kill":
    for pid in open("/proc/PRINCIPAL/task/PRINCIPAL/children").read().split():
        os.kill(int(pid), signal.SIGKILL)
elif sys.argv[1] == "stop":
    control = socket.create_connection(("HOST", int("PORT")))
    os.kill(int("WATCHDOG"), signal.SIGTERM)
    while not (answer := control.sendall(b"requetetype1\n") or control.recv(100)).startswith(b"-1"):
        socket.create_connection(("HOST", int(answer))).close()
