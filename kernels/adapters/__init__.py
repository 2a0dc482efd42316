"""Other packages' kernels behind our signatures. Nothing is imported from them before it is called."""
