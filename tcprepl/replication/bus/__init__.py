"""Our streams on the channels of Synapse over Redis. Stands above serving, whose reader it is."""
