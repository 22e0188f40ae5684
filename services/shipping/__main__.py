"""Run the service: the same as ``choreo run services.shipping:service``, options included."""

import sys

from choreo.cli.app import run_command

if __name__ == "__main__":
    sys.exit(run_command(["run", "services.shipping:service", *sys.argv[1:]]))
