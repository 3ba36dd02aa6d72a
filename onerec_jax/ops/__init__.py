"""Array operations: attention, expert dispatch, embeddings."""
