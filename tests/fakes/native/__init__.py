"""Stand-ins for vendors' native libraries, built from C for the tests."""
