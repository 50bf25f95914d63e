"""What checkpoints call the processor steps of this package, apart from the steps, which take seconds to import."""

VECTORS = "aegis_vectors"
