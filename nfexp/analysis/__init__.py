"""From run directories to conclusions: tables, statistics, verdicts on claims. Needs no torch."""
