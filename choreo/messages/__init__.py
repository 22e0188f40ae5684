"""The wire format: what stands in the log.

``records`` holds a struct for each kind of record; ``headers`` the CloudEvents binding, by which a reader drops what
is not for it without decoding; ``codec`` turns bytes into records and back, with limits and one error type;
``schema`` writes the JSON Schema of all that.
"""
