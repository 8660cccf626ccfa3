"""What runs a sweep: processes of this machine, or tasks of a Ray cluster."""
