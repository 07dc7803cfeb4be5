"""Draw videos of every kind that people's disks hold, with what a player shows of each."""
