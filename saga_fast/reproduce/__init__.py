"""The paper's tables and figures, each made by one command: what it needs, what it takes, and what it prints."""
