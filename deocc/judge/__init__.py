"""Does restoring faces help a matcher, and what did it invent? ``docs/judging.md`` defines every figure."""

from deocc.judge.result import Report, read, write

__all__ = ["Report", "read", "write"]
