"""Files, plots, signals and facts about the machine: used by every other folder, and using none."""
