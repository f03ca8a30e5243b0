"""Training and testing: the networks of the tutorials, and Lightning routines for any network."""
