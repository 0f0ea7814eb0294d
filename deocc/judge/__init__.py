"""Does restoring faces help a matcher, and what did it invent? ``docs/judging.md`` defines every figure.

>>> from deocc import judge
>>> report = judge.verification("lfw:data/lfw:test", restorers=["canet"], out="report")  # doctest: +SKIP
>>> report.verification.rows[0].auc  # doctest: +SKIP
"""

from deocc.judge.result import Report, read, write
from deocc.judge.run import TASKS, judge, quality, retrieval, verification

__all__ = ["TASKS", "Report", "judge", "quality", "read", "retrieval", "verification", "write"]
