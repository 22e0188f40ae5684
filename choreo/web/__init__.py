"""The HTTP API and the dashboard of the saga-log.

``desk`` is what can be asked and done, without HTTP; ``operations`` lists it as a table, ``api`` serves the table and
``openapi`` describes it; ``access`` and ``limits`` say who may, and how much; ``live`` tells of changes; ``bulk`` acts
on many sagas at once; ``app`` puts it together and ``server`` on a port.
"""

from choreo.web.serve import serve_saga_log

__all__ = ["serve_saga_log"]
