package kv

import "penstock.dev/penstock/internal/fleet"

// Moved notes that the KV of p, computed elsewhere, goes to a slot.
func (b *Book) Moved(_ fleet.Time, slot int, p *Prompt) { b.history.Insert(slot, p.Chain) }
