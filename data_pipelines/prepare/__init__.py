"""Preparation: raw archives to sharded ArrayRecord files with statistics and a report."""
