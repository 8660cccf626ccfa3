"""The paper's study, and accuracy against cost: grid of runs, records, report, and selection by budget."""
