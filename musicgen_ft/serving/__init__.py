"""One local page to play and compare models: what it does, and how it looks."""
