"""What a training does around its steps: checkpoints, conditions, signals, logs, validation."""
