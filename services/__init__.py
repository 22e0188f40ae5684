"""An order saga across four services, each deployable alone: the example, the demo, and what end-to-end tests run.

``order`` is the contract that all share; ``inventory``, ``payment``, ``shipping`` and ``notification`` are the step
services, each with a database of its own and none importing another; ``demo`` shows them at work in one terminal.
"""
