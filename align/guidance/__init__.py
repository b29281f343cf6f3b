"""`align advise --model` and `align init`: from model, device, data and goal to a method, its settings and a recipe."""
