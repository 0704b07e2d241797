"""The CPU platform's own operators: compiled by numba, run by a team of threads, without torch."""
