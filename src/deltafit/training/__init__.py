"""The loop on Accelerate: optimiser, schedule, checkpoints, tracking, cost accounting."""
