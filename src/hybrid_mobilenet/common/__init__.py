"""What every other folder may use: atomic files, devices, signals, errors, memory, facts about the machine, plots."""
