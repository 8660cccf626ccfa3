"""The page that runs a model in a browser: its export, its server, and its check in Node."""
