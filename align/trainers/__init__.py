"""Trainers: TRL's, with the order of rows, the reference and the precision of adapters under our control."""
