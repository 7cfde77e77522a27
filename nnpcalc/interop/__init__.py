"""Other people's weights and other programs' engines; one file per neighbour."""
