#!/usr/bin/env python3
"""Plays transcripts against any server of this protocol: see README.md beside this file.

    run.py HOST:PORT FILE...                each transcript once
    run.py HOST:PORT FILE... --cut          and again for each byte at which a "->" can be cut
    run.py HOST:PORT FILE... --operator C   "operator stop" runs the shell command "C stop"
"""
import argparse, itertools, random, re, socket, struct, subprocess, sys, time

PATIENCE, CUT_PAUSE, LATE = 20.0, 0.003, 0.040
KINDS = {"PORT": rb"[0-9]{4,5}", "JETON": rb"[0-9a-f]{32}", "SLOT": rb"[0-9]+",
         "HOST": rb"[0-9A-Za-z.-]+|\[[0-9a-f:.]+\]"}
PART = re.compile(r"\$([?^]?)([A-Z]+[0-9]*)|\\x([0-9a-f]{2})|\\([nrt\\])|([^$\\]+)")
ESCAPES = {"n": b"\n", "r": b"\r", "t": b"\t", "\\": b"\\"}
plays = itertools.count(random.randrange(1 << 22))


class Wrong(Exception):
    """The server does something else."""


class Late(Exception):
    """Between two pieces so much time went by that the first may have been taken for all."""


def parse(path):
    """The transcripts of a file: (name, [(line number, who, verb, rest)])."""
    found = []
    for number, line in enumerate(open(path, encoding="ascii").read().split("\n"), 1):
        if line.startswith("== "):
            found.append((f"{path}:{number}: {line[3:]}", []))
        elif line and not line.startswith("#"):
            found[-1][1].append((number, *(line.split(" ", 2) + ["", ""])[:3]))
    return found


def parts(verb, text):
    """What is to be sent or expected: literals as bytes, variables as (sign, name)."""
    once = [(sign, name) if name else bytes.fromhex(code) if code else ESCAPES.get(escape, plain.encode())
            for sign, name, code, escape, plain in PART.findall(text)]
    return once * int(verb[3:] or 1)


def seconds(text):
    return float(text[:-2]) / 1000 if text.endswith("ms") else float(text[:-1])


class Play:
    def __init__(self, server, operator):
        self.server, self.operator, self.number = server, operator, next(plays)
        self.variables, self.streams, self.received = {}, {}, {}

    def connect(self, who, address, elsewhere=False):
        local = None
        if self.server[0].startswith("127."):  # An address of its own.
            number = self.number * 2 + elsewhere
            local = (f"127.{128 + (number >> 16) % 127}.{number >> 8 & 255}.{number & 255}", 0)
        self.streams[who], self.received[who] = socket.create_connection(address, PATIENCE, local), b""
        self.streams[who].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def value(self, part):
        if isinstance(part, bytes):
            return part
        value = self.variables[part[1]]
        return value.upper() if part[0] == "^" else value

    def send(self, who, data, cut):
        began = time.monotonic()
        try:
            if cut:
                self.streams[who].sendall(data[:cut])
                time.sleep(CUT_PAUSE)
            self.streams[who].sendall(data[cut:])
        except ConnectionError:
            pass  # What comes next tells whether it should have been closed.
        if cut and time.monotonic() - began > LATE:
            raise Late

    def receive(self, who, within=PATIENCE):
        """Whether something came; None where the connection has ended."""
        self.streams[who].settimeout(within)
        try:
            data = self.streams[who].recv(1 << 16)
        except TimeoutError:
            return False
        except ConnectionError:
            return None
        self.received[who] += data
        return True if data else None

    def expect(self, who, wanted):
        pattern, names = b"", []
        for part in wanted:
            if isinstance(part, bytes) or (part[0] != "?" and part[1] in self.variables):
                pattern += re.escape(self.value(part))
            elif part[0] != "?" and part[1] in names:
                pattern += b"\\%d" % (names.index(part[1]) + 1)
            else:
                names.append(part[1])
                pattern += b"(" + KINDS[part[1].rstrip("0123456789")] + b")"
        while not (match := re.match(pattern, self.received[who])):
            if not self.receive(who):
                raise Wrong(f"got {self.received[who]!r} and no more")
        self.variables.update(zip(names, match.groups()))
        self.received[who] = self.received[who][match.end():]

    def step(self, who, verb, rest, cut):
        if who == "wait":
            time.sleep(seconds(verb))
        elif who == "operator":
            subprocess.run(f"{self.operator} {verb}", shell=True, check=True)
        elif verb == "control":
            self.connect(who, self.server)
        elif verb == "data":
            host, _, port = rest.split()[0].rpartition(":")
            host = self.variables[host[1:]].decode().strip("[]") if host else self.server[0]
            self.connect(who, (host, int(self.variables[port[1:]])), rest.endswith("elsewhere"))
        elif verb[:2] in ("->", "=>"):
            self.send(who, b"".join(map(self.value, parts(verb, rest))), cut)
        elif verb[:2] == "<-":
            self.expect(who, parts(verb, rest))
        elif verb == "silent":
            if self.receive(who, seconds(rest)) is not False or self.received[who]:
                raise Wrong(f"got {self.received[who]!r}, or an end")
        elif verb == "ends":
            self.streams[who].shutdown(socket.SHUT_WR)
        else:
            self.leave(self.streams.pop(who), who, verb)

    def leave(self, stream, who, verb):
        if verb == "resets":
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif verb == "floods":  # Sends and never reads, until the connection breaks.
            try:
                while True:
                    stream.sendall(bytes(1 << 16))
            except ConnectionError:
                pass
        elif verb == "closed":
            self.streams[who] = stream
            while (came := self.receive(who)):
                pass
            if came is False or self.received[who]:
                raise Wrong(f"got {self.received[who]!r}{' and no close' if came is False else ''}")
            del self.streams[who]
        elif verb != "closes":
            raise ValueError(verb)
        stream.close()

    def play(self, steps, cut_line=0, cut=0):
        for number, who, verb, rest in steps:
            try:
                self.step(who, verb, rest, cut if number == cut_line else 0)
            except (Wrong, OSError) as error:
                raise Wrong(f"line {number}: {who} {verb} {rest}: {error}") from error
        for who in self.streams:
            self.receive(who, 0.001)
            if self.received[who]:
                raise Wrong(f"{who} got more than is told: {self.received[who]!r}")


def cuts(steps):
    """Every (line, byte) at which something may be cut."""
    for number, _, verb, rest in steps:
        if verb.startswith("->"):
            length = sum(len(part) if isinstance(part, bytes) else 32 for part in parts(verb, rest))
            yield from ((number, byte) for byte in range(1, length))


def verdict(server, operator, steps, cut):
    while True:
        try:
            return Play(server, operator).play(steps, *cut)
        except Late:
            continue
        except Wrong as wrong:
            return wrong


def main():
    arguments = argparse.ArgumentParser(description="Plays transcripts against a server of this protocol.")
    arguments.add_argument("server", metavar="HOST:PORT")
    arguments.add_argument("files", nargs="+", metavar="FILE")
    arguments.add_argument("--cut", action="store_true", help='also cut each "->" at every byte')
    arguments.add_argument("--operator", metavar="COMMAND", help='"operator stop" runs "COMMAND stop"')
    asked = arguments.parse_args()
    host, _, port = asked.server.rpartition(":")
    played = failed = 0
    for name, steps in itertools.chain.from_iterable(map(parse, asked.files)):
        if any(who == "operator" for _, who, _, _ in steps) and not asked.operator:
            print(f"skipped, needs --operator: {name}")
            continue
        for cut in itertools.chain([(0, 0)], cuts(steps) if asked.cut else []):
            played += 1
            if wrong := verdict((host.strip("[]"), int(port)), asked.operator, steps, cut):
                failed += 1
                where = f", cut at byte {cut[1]} of line {cut[0]}" if cut[0] else ""
                print(f"FAILED {name}{where}\n  {wrong}")
    print(f"{played} played, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
