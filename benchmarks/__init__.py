"""Benchmarks: each compares two ways to do the same work, in CPU seconds, in one run; they are no tests."""
