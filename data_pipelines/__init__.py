"""From raw downloads to batches: readers, ArrayRecord, grain. Of the library it knows the sensors and the Batch."""
