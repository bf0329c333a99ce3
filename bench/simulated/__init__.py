"""A Mac on paper: the real engine against a scripted model with the constants of a chip, on a virtual clock."""
