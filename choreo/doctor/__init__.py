"""The doctor: is a deployment as sagas need it? Each finding comes with its fix.

    diagnosis = await examine(broker, ["order"], now_ms=clock.now_ms(), store="sqlite:///saga-log.db")
    diagnosis.healthy                       # no error among the findings
    for finding in diagnosis.findings: ...  # check, level, subject, text, fix; msgspec structs, errors first

``examine`` asks broker, registry and store; ``topics`` and ``groups`` judge what they say, without I/O; ``findings``
are the results. Nothing is written, no group is joined.
"""

from choreo.doctor.examine import examine
from choreo.doctor.findings import Diagnosis, Finding

__all__ = ["Diagnosis", "Finding", "examine"]
