"""OneRec in JAX: semantic IDs, generative retrieval, alignment."""
