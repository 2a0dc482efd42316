"""An OpenAI-compatible server over a running batch, on any layout."""
