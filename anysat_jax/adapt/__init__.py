"""From frozen features to a task: linear probes and the scores that judge them."""
