"""Training and testing: the networks of the tutorials, and Lightning around any network."""
