"""What vLLM imports: its ``PYTHONPATH`` is this folder, so nothing else may lie here."""
