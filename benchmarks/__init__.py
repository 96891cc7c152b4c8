"""Time and memory, each beside what the machine allows. Run as `python -m benchmarks.NAME`."""
