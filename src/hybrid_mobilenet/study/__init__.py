"""The paper's study: its grid of runs, their records, and the report that judges its claims."""
