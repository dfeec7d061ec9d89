"""The images, read and linted; what builds them for real is in tests/images."""
