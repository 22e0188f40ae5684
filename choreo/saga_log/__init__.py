"""The saga-log: folds every record of a partition into its sagas' states, and appends what is owed.

``runtime`` follows the consumer group and runs the batches; ``shard`` holds the sagas of one partition, without I/O;
``timer`` knows when time has something to say; ``outbound`` turns decisions into records that are in the log;
``dead_letter`` keeps what nobody could read; ``accounts`` counts and logs what was folded; ``intake`` decides what is
a record of ours; ``replay`` folds the log again for whoever asks.

Guarantee: every decision that the log implies is in the log, at least once, under an id that is the same each time.
"""
