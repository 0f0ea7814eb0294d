"""Showing results: a contact sheet (one picture) and a report (one self-contained HTML file).

Both say that restored pixels are invented, because a picture travels further than the page it came from.
"""

from deocc.report.html import Picture, Row, Table, html
from deocc.report.sheet import INVENTED, contact_sheet

__all__ = ["INVENTED", "Picture", "Row", "Table", "contact_sheet", "html"]
