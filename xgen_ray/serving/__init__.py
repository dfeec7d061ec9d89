"""What runs in Ray: control's state machine and its executors, the engine replica, the router's choice."""
