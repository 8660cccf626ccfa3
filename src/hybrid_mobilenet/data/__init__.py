"""Images and labels: read from where they lie, split, and decoded into batches."""
