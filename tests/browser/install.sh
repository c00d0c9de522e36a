#!/usr/bin/env bash
# Installs what tests/browser.rs and tests/observer_metrics.rs need besides a Rust toolchain and Python: Chromium with its
# WebDriver from Debian (as root), axe-core from npm, the parser of Prometheus from PyPI and its promtool from Debian.
# All but Chromium goes to target/tools, and nothing is installed twice.
set -euo pipefail
cd "$(dirname "$0")/../.."
tools=target/tools
mkdir -p "$tools"

if ! command -v chromium >/dev/null || ! command -v chromedriver >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        chromium chromium-driver fonts-dejavu-core
fi

if [ ! -e "$tools/node_modules/axe-core/axe.min.js" ]; then
    npm install --silent --no-save --prefix "$tools" axe-core@4.14
fi

if [ ! -d "$tools/python/prometheus_client" ]; then
    python3 -m pip install --quiet --root-user-action ignore --target "$tools/python" 'prometheus_client==0.26.*'
fi

# Only this program of the package: the package would start a server.
if [ ! -x "$tools/promtool" ]; then
    directory="$(mktemp -d)"
    trap 'rm -r "$directory"' EXIT
    chmod 755 "$directory"
    (cd "$directory" && { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; })
    dpkg-deb --fsys-tarfile "$directory"/prometheus_*.deb | tar -x -C "$directory" ./usr/bin/promtool
    mv "$directory/usr/bin/promtool" "$tools/"
fi
