"""What an application uses: start sagas, wait for them, ask after them, cancel them.

``client`` is for asynchronous programs, ``blocking`` for the others; ``watch`` follows the log for outcomes
and ``outcome`` turns one into a value or an error.
"""

from choreo.client.blocking import BlockingClient
from choreo.client.client import Client

__all__ = ["BlockingClient", "Client"]
