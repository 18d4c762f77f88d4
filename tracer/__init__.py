"""dnettrace: follows packets through Docker's bridge networks, hop by hop."""

__version__ = "0.1.0"
