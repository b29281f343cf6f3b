"""What `benchmarks.fuzz` damages: recipes, data files, models and run folders."""
