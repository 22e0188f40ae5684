"""What a saga is: a frozen value that services, saga-log and clients share.

``saga`` holds ``Saga`` and ``Step``; ``policy`` retries and durations; ``condition`` when a step runs, and ``when`` how
that is written; ``validate`` finds every problem at once; ``graph`` answers who comes after whom; ``render`` draws it
as text and Mermaid; ``document`` is its JSON form.
"""

from choreo.contract import when
from choreo.contract.policy import Retries
from choreo.contract.saga import Saga, Step

__all__ = ["Retries", "Saga", "Step", "when"]
