"""How one rank's model is run: the contract, and its kinds behind the factory."""
