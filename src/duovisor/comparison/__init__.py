"""Both designs, measured on one machine and explained; a client of the layers, beside them."""
