"""The models of a run and how drawn tokens are read with them."""
