#!/bin/sh
# Installs a Chromium for the tests of the dashboard, unless there is one. Needs apt and the rights of root.
set -eu

if [ -n "${CHOREO_CHROMIUM:-}" ] || command -v chromium > /dev/null || command -v chromium-browser > /dev/null || command -v google-chrome > /dev/null; then
    exit 0
fi
if ! command -v apt-get > /dev/null || [ "$(id -u)" != 0 ]; then
    echo "There is no Chromium, and only root can install it here, by apt-get. Install one yourself, or name it by" >&2
    echo "CHOREO_CHROMIUM=/path/to/chromium; without it the tests of the dashboard are left out." >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core > /dev/null
command -v chromium
