"""Writing files and folders so that nothing half-written is ever seen, by one process or by several at once."""
