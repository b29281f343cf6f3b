"""The parent: for each stage skip, resume or run; decide; next. No torch."""
