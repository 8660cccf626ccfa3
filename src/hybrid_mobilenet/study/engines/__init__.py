"""The engines that run a sweep: processes on this machine, or tasks on a Ray cluster."""
