"""From finished runs to a comparison, its statistics and its report."""
