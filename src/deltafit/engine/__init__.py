"""Speed: bulk dropout, which changes which elements are dropped and nothing else."""

from deltafit.engine.dropout import bulk_dropout

__all__ = ["bulk_dropout"]
