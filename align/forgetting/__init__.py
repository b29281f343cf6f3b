"""What a stage made the model forget: probes, their statistics, the gate and the matrix."""
