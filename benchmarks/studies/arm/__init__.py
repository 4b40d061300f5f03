"""ARM processors under emulation."""
