"""What a running process shows of itself.

``metrics`` is the table of all Prometheus metrics; ``http`` serves them, with health and readiness; ``log`` sets up
the log output. ``events`` says what tracers are and are told; ``tracing`` is one that makes OpenTelemetry spans,
``log_tracer`` one that writes lines.
"""
