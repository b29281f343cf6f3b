"""The child: one ticket from the load to the outcome."""
