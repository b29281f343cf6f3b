"""A run's folder: its paths, its records and its files; the only room that knows them."""
