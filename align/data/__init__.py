"""Training data without torch: where rows come from, what they mean, and every check before a model is loaded."""
