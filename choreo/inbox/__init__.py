"""The inbox of a service: what its steps have come to, kept in the service's own database beside their effects.

Effect, row and recorded outcome commit in one transaction, so a redelivery finds what was answered and runs nothing.
``inbox`` is what users make; ``source`` understands their engine or session factory, ``resource`` the parameters in
which handlers ask for the database, ``table`` the rows, ``transaction`` the ways through a driver, sync and async, and
``transient`` which of a database's errors pass. What is written, and when, is the step runtime's: ``choreo.step``.
SQLAlchemy (extra ``sqlalchemy``) is imported when the first inbox is made.
"""

from choreo.inbox.inbox import Inbox

__all__ = ["Inbox"]
