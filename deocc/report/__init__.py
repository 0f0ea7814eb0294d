"""Showing results: a contact sheet (one picture), a report (one self-contained HTML file), a table on the terminal.

Sheet and report say that restored pixels are invented, because a picture travels further than the page it came from.
"""

from deocc.report.html import Picture, Row, Section, Strip, Table, html
from deocc.report.plot import Plot
from deocc.report.sheet import INVENTED, contact_sheet
from deocc.report.terminal import print_table

__all__ = ["INVENTED", "Picture", "Plot", "Row", "Section", "Strip", "Table", "contact_sheet", "html", "print_table"]
