"""CPUs: our own C++ for a few rows of input, and which library multiplies the rest."""
