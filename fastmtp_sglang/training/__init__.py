"""Training of the MTP head: data, chain forward, loss, trainer, validation, export."""
