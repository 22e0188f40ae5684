"""What the brokers without a server, memory and SQLite, have in common.

``group`` is the coordinator of a consumer group as a value; ``log`` says what an adapter has to bring (storage, and
somewhere to keep that value); ``reading`` makes the port's consumers and readers of it, and ``broker`` opens them;
``changes`` wakes whoever waits for news; ``rules`` are the checks that a server would do.
"""
