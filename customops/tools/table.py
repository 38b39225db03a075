"""A table as text, or as rich draws it where it is installed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

NUMBER = re.compile(r"[-+]?[\d,]+(\.\d+)?(e[-+]?\d+)?|-|\?|")


class Table(NamedTuple):
    """Rows of cells below a head; columns of numbers are aligned on the right."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def __str__(self):
        lines = [self.head, *self.rows]
        widths = [max(len(line[k]) for line in lines) for k in range(len(self.head))]
        align = [str.rjust if right else str.ljust for right in self._are_numbers()]
        cells = (map(lambda f, cell, width: f(cell, width), align, line, widths) for line in lines)
        return "\n".join("  ".join(line).rstrip() for line in cells)

    def __rich__(self) -> Any:
        """Return the table as rich draws it; what stands in its cells is no markup."""
        from rich import table, text  # noqa: PLC0415 - it is optional

        drawn = table.Table()
        for name, right in zip(self.head, self._are_numbers(), strict=True):
            drawn.add_column(text.Text(name), justify="right" if right else "left")
        for row in self.rows:
            drawn.add_row(*map(text.Text, row))
        return drawn

    def _are_numbers(self) -> list[bool]:
        columns = [[row[k] for row in self.rows] for k in range(len(self.head))]
        return [any(column) and all(NUMBER.fullmatch(cell) for cell in column) for column in columns]
