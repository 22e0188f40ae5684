"""What choreo costs, always beside the wire limit of the same machine in the same run. See ``docs/performance.md``."""
