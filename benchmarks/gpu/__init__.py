"""Programs for one CUDA GPU, each with a dry run on the CPU."""
