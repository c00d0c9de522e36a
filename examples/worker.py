#!/usr/bin/env python3
"""A worker for `mode = "persistent"`: sorts the words of each message."""
import sys

receive, send = sys.stdin.buffer, sys.stdout.buffer
while header := receive.read(4):  # ends with its input
    message = receive.read(int.from_bytes(header, "big"))
    answer = b" ".join(sorted(message.split())) + b"\n"
    send.write(len(answer).to_bytes(4, "big") + answer)
    send.flush()
