"""From raw downloads to batches: readers, ArrayRecord, grain. Imports only sensors, batch and errors of anysat_jax."""
