"""Where the time of calls goes: traces in, a report out. Functions of values, without I/O."""
