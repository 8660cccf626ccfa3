"""The page that runs a model in a browser: exported, served, and run in Node."""
