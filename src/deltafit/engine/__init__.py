"""Speed: packed batches and bulk dropout, which change what is computed by rounding alone."""

from deltafit.engine.checking import check_packing
from deltafit.engine.dropout import bulk_dropout
from deltafit.engine.layout import CannotPackError
from deltafit.engine.packing import packed

__all__ = ["CannotPackError", "bulk_dropout", "check_packing", "packed"]
