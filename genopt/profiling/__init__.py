"""Where a model's time goes, against what the machine was measured to reach."""
