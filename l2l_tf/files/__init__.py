"""Files: what of ours lies where, how it is written whole, and how it is read."""
