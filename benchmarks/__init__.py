"""The benchmark: `python -m benchmarks` prints tables and writes CSVs; see docs/performance.md for the method."""
