"""For all tests: Ctrl-C reaches the programs that they start."""

import signal

# A shell has it ignored in what it starts in the background, and every child would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
