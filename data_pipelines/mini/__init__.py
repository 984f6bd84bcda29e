"""Generated datasets: a seeded landscape, simulated as each sensor observes it."""
