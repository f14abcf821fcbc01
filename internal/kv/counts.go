package kv

// Add adds up what became of the batches of several feeds.
func (c *FeedCounts) Add(o FeedCounts) {
	c.Applied += o.Applied
	c.Duplicate += o.Duplicate
	c.Damaged += o.Damaged
	c.Gaps += o.Gaps
	c.Replays += o.Replays
	c.Lost += o.Lost
	c.Restarts += o.Restarts
	c.Overflows += o.Overflows
	c.Disconnect += o.Disconnect
}

// Add adds up what became of the events and blocks of several feeds.
func (c *NameCounts) Add(o NameCounts) {
	for i, n := range o.Faults {
		c.Faults[i] += n
	}
	for i, n := range o.Drops {
		c.Drops[i] += n
	}
	c.Conflicts += o.Conflicts
	c.Orphans += o.Orphans
	c.Reunited += o.Reunited
	c.Equal += o.Equal
	c.Unequal += o.Unequal
}
