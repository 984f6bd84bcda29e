"""From raw downloads to batches: readers, ArrayRecord, grain. Knows the sensors and the Batch, nothing else of the library."""
