"""The embedded datasets: a seeded landscape as every sensor would see it."""
