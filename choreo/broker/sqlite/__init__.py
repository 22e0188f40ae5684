"""The embedded broker: ``sqlite:///file``, one file that several processes of a machine share. No server.

``file`` opens the database and says in choreo's words what is wrong with one; ``tables`` is the SQL; ``threads``
keeps SQLite off the event loop: a ``Writer`` that commits whatever waits as one transaction, and a ``Follower`` that
reads, and looks for what other processes have written; ``horizon`` is what this process knows of the log's ends;
``retention`` deletes what is too old; ``broker`` puts them together behind the port.

A record is acknowledged after its transaction is on disk (WAL, ``synchronous=FULL``), so it survives a loss of
power. The group commit makes that cheap: one flush of the disk for all sends that wait. Files on a network share do
not work: SQLite's WAL needs memory that all processes share.
"""

from choreo.broker.sqlite.broker import SqliteBroker

__all__ = ["SqliteBroker"]
