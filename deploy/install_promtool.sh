#!/bin/sh
# Gets promtool for the tests of the alerts, unless there is one: the program alone, out of Debian's package, into .choreo/promtool.
# Nothing is installed, so no Prometheus is started.
set -eu
cd "$(dirname "$0")/.."

if command -v promtool > /dev/null || [ -x .choreo/promtool/usr/bin/promtool ]; then
    exit 0
fi
if ! command -v apt-get > /dev/null || ! command -v dpkg-deb > /dev/null; then
    echo "There is no promtool, and no apt-get to get it by; install Prometheus, or leave the tests of the alerts out." >&2
    exit 1
fi
[ "$(id -u)" != 0 ] || apt-get update -qq
fetched=$(mktemp -d)
trap 'rm -rf "$fetched"' EXIT
chmod 755 "$fetched"
(cd "$fetched" && apt-get download -qq prometheus)
mkdir -p .choreo/promtool
dpkg-deb --extract "$fetched"/prometheus_*.deb "$fetched/all"
mkdir -p .choreo/promtool/usr/bin
mv "$fetched/all/usr/bin/promtool" .choreo/promtool/usr/bin/
