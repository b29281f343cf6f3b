"""What a recipe will take, before it runs: steps, tokens, disk and memory, and what is there already."""
