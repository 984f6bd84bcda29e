"""Fine-tuning, probing and evaluation: tasks, heads, metrics, frozen features and the three jobs."""
