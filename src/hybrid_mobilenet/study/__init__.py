"""The paper reproduced: its tables, the sweep over its configurations, and the judgement of its claims."""
