"""Reading the parts of a data set alike."""

from dataclasses import dataclass, field

from deltafit.data.columns import Columns, find_columns
from deltafit.data.labels import LabelSet
from deltafit.data.rows import Table
from deltafit.data.sources import DataSource
from deltafit.data.texts import LabelledTexts, read_labelled


@dataclass
class Reader:
    """Reads the parts of one data set: same columns where they exist, same classes always.

    Attributes:
        source: the data set.
        text_column: the column of texts, where it is not to be found by itself.
        label_column: the same for labels.
        columns: of the parts so far.
        classes: of the parts so far.
        notes: sentences on what is odd about a part.
    """

    source: DataSource
    text_column: str | None
    label_column: str | None
    columns: Columns | None = None
    classes: LabelSet | None = None
    notes: list[str] = field(default_factory=list)

    def read(self, source: DataSource, part: str) -> LabelledTexts:
        """Read a part of the data set, or of another one.

        Raises:
            DeltafitError: as ``load_splits``.
        """
        named = [name for name in (self.text_column, self.label_column) if name is not None]
        table = source.open(part, named)
        columns = self._columns_of(table)
        labelled, self.classes = read_labelled(
            table, columns, self.classes, self.source.label_names
        )
        self.notes += [note for note in table.notes if note not in self.notes]
        self.columns = self.columns or columns
        return labelled

    def _columns_of(self, table: Table) -> Columns:
        first = self.columns
        if first and {first.text, first.label} <= set(table.columns):
            return first
        columns = find_columns(table, self.text_column, self.label_column)
        if first:
            self.notes.append(
                f"{table.source}: texts are in {columns.text!r} and labels in {columns.label!r}."
            )
        return columns
