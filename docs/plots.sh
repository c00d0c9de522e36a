#!/usr/bin/env bash
# Draws the plots of docs/performance.md again, on this machine, into docs/plots (or the directory given):
# builds, starts systems of its own in a temporary directory, loads them with osps-stress, then measures how cost
# grows. Five minutes; all traffic stays on the loopback.
set -euo pipefail
cd "$(dirname "$0")/.."
plots=$(realpath -m "${1:-docs/plots}")
mkdir -p "$plots"
cargo build --release --locked
directory=$(mktemp -d)
programs=${CARGO_TARGET_DIR:-target}/release
osps() { "$programs/osps" "$@" --config "$directory/osps.toml"; }
stress() { "$programs/osps-stress" --at "$address" --expect echo --config "$directory/osps.toml" "$@"; }
stop() { osps stop 2>/dev/null || true; }
trap 'stop; rm -rf "$directory"' EXIT

# A system with these lines in its configuration, whose servers are not young any more.
start() {
    printf 'listen = "127.0.0.1:0"\ndata_ports = "0"\nsecondaries = 4\nruntime_dir = "%s/run"\n%s\n' \
        "$directory" "$1" > "$directory/osps.toml"
    osps > "$directory/said" 2> "$directory/log" &
    until [ "$(grep -c ready "$directory/said")" -ge 5 ]; do
        kill -0 $! 2>/dev/null || { cat "$directory/log" >&2; exit 1; }
        sleep 0.05
    done
    sleep 1.2
    address=$(sed -n 's/.*listening on //p' "$directory/said")
}

echo "== 9,000 clients for 30 seconds"
start ""
stress --clients 9000 --duration 30s --plot "$plots/clients-9000.svg"

echo "== a principal that is stopped for 1.5 of 3 seconds"
principal=$(sed -n 's/^principal pid \([0-9]*\).*/\1/p' "$directory/said")
(sleep 0.75; kill -STOP "$principal"; sleep 1.5; kill -CONT "$principal") &
stress --rate 2000 --duration 3s --plot "$plots/stopped.svg"
wait $!
stop

echo "== half of the capacity, two servers killed or frozen each second"
start $'[watchdog]\nperiod = "20ms"\nsuspect_after = "25ms"\nkill_after = "50ms"'
capacity=$(stress --clients 64 --duration 5s --quiet --json | grep -o '"rate": *[0-9]*' | head -n 1 | grep -o '[0-9]*')
# Jobs under way fail with their server: osps-stress says so by its exit code.
stress --rate "$((capacity / 2))" --clients 256 --duration 20s --faults 2 --plot "$plots/faults.svg" || true
stop

echo "== how cost grows"
cargo bench --bench scale -- --plots "$plots"
