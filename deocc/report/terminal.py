"""Tables on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Print a table to standard output: wrapped on a terminal, with lines as long as need be in a file or a pipe.

    Args:
        columns: the headings.
        rows: a value for each.
        left: this many columns are set to the left, the others to the right.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < left else "right", no_wrap=index == 0, overflow="fold")
    for row in rows:
        table.add_row(*row)
    # A file may be named "[bold]" or ":smile:": values are no markup.
    console = Console(width=None if sys.stdout.isatty() else 10_000, markup=False, emoji=False)
    with console.capture() as text:
        console.print(table)
    for line in text.get().splitlines():
        print(line.rstrip())
