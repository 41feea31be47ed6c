"""A small labelled music corpus made by rule: composed, played and described from a seed, with no samples of others."""
