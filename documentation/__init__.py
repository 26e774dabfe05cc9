"""What the documentation site generates: the keys, the claims, the commands. `make docs` builds the site."""
