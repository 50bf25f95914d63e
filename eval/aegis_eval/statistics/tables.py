"""Tables of texts, as fixed-width text for a terminal and as Markdown.

What the cells say is the caller's business (`aegis_eval.statistics.text` writes estimates). On an HTML page a `Table`
is shown by the macro of that name in `aegis_eval/pages/templates/parts.jinja`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest


@dataclass(frozen=True)
class Table:
    """Rows of texts under a header; a row's first cell names it.

    Attributes:
        header: a text a column.
        rows: the cells of each; those that a row lacks at its end are empty.
        total: whether the last row sums up the others and is set off from them.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    total: bool = False

    def text(self, *, right: bool = True) -> str:
        """Columns of fixed width, two spaces apart, without a line break at the end; a total is ruled off, as is the
        header then.

        Args:
            right: whether the columns behind the first stand to the right, as numbers do.
        """
        widths = [max(map(len, column)) for column in zip(*self._lines(), strict=True)]
        align = str.rjust if right else str.ljust
        lines = [
            "  ".join(
                (align if column else str.ljust)(cell, width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in self._lines()
        ]
        if not self.total:
            return "\n".join(lines)
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])

    def markdown(self) -> str:
        """A table of GitHub's Markdown, without a line break at its end."""
        lines = [f"| {' | '.join(self.header)} |", f"|{'---|' * len(self.header)}"]
        for row in self.rows:
            lines.append(f"| {' | '.join(row)} |{' |' * (len(self.header) - len(row))}")
        return "\n".join(lines)

    def _lines(self) -> Iterator[list[str]]:
        """Header and rows, each with a cell a column."""
        for line in (self.header, *self.rows):
            yield [cell for cell, _ in zip_longest(line, self.header, fillvalue="")]
