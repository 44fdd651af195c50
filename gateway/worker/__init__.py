"""The agent of one machine: makes its processes what the desired set says, and reports what it sees."""
