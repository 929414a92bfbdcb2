"""From archives to a trained model: quiet time, rows, Tensor2Tensor in its own environment, a sealed artifact."""
