"""Made-up archives in the published layouts, to try the whole way from a download to batches without a download."""
