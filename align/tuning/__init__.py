"""`align tune`: short trials of a stage over its learning rate, rank and replay, judged on the gate's items."""
