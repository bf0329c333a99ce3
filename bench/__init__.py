"""Side-by-side measurements; see docs/performance.md."""
