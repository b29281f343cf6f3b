"""Finished runs side by side: what one kept that another forgot, and how sure that is."""
