#!/usr/bin/env bash
# Draws the plots of docs/performance.md again, on this machine, into docs/plots (or the directory given):
# builds, starts a system of its own in a temporary directory, loads it with osps-stress, then measures how cost
# grows. Ten minutes; all traffic stays on the loopback.
set -euo pipefail
cd "$(dirname "$0")/.."
plots=$(realpath -m "${1:-docs/plots}")
mkdir -p "$plots"
cargo build --release --locked

directory=$(mktemp -d)
osps() { target/release/osps "$@" --config "$directory/osps.toml"; }
finish() {
    osps stop 2>/dev/null || true
    rm -rf "$directory"
}
trap finish EXIT
printf 'listen = "127.0.0.1:0"\ndata_ports = "0"\nsecondaries = 4\nruntime_dir = "%s/run"\n' "$directory" > "$directory/osps.toml"
osps > "$directory/said" 2> "$directory/log" &
until osps status --json 2>/dev/null | grep -q '"secondary"' && grep -q listening "$directory/said"; do sleep 0.05; done
sleep 1 # Until all are ready, and none is young any more.
address=$(sed -n 's/.*listening on //p' "$directory/said")

stress() { target/release/osps-stress --at "$address" --expect echo --config "$directory/osps.toml" "$@"; }

echo "== 9,000 clients for 30 seconds"
stress --clients 9000 --duration 30s --plot "$plots/clients-9000.svg"

echo "== half of the capacity, two servers killed or frozen each second"
capacity=$(stress --clients 64 --duration 5s --quiet --json | grep -o '"rate": *[0-9]*' | head -n 1 | grep -o '[0-9]*')
stress --rate "$((capacity / 2))" --duration 20s --faults 2 --plot "$plots/faults.svg" || true

echo "== a principal that is stopped for 1.5 of 3 seconds"
sleep 3 # Until whoever was replaced last is not young any more.
principal=$(osps status --json | tr ',{' '\n\n' | sed -n '/"role": *"principal"/,/"pid"/s/.*"pid": *//p' | head -n 1)
(sleep 0.75; kill -STOP "$principal"; sleep 1.5; kill -CONT "$principal") &
stress --rate 2000 --duration 3s --plot "$plots/stopped.svg" || true
wait %% 2>/dev/null || true

echo "== how cost grows"
cargo bench --bench scale -- --plots "$plots"
