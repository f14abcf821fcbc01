package kv

// Misfit is why direct keys are not believed: a request's keys would never be among
// the engine's, and nothing the engine tells would be found.
type Misfit uint8

// The reasons.
const (
	MisfitNone     Misfit = iota
	MisfitKeys            // the engine's keys are not sha256_cbor from the root
	MisfitBlock           // the engine's blocks are not as large as own ones
	MisfitUnproven        // none has been compared yet: no chain's beginning was told
)

// String says what m means to whoever runs the engine.
func (m Misfit) String() string {
	return [...]string{
		"",
		"keys differ: the engine does not hash as configured",
		"blocks differ: the engine's are not as large as configured",
		"keys unproven: the engine has not told a chain's first block yet",
	}[min(m, MisfitUnproven)]
}

// Misfit returns why the engine's keys cannot be own ones, as far as has been seen
// of this process; there is none without KeysDirect. Where events carry no tokens,
// nothing can be compared, and keys are taken as they are.
func (n *Names) Misfit() Misfit {
	if n.misfit == MisfitNone && n.space.Mode == KeysDirect && n.engineBlock > 0 && n.parity.equal == 0 {
		return MisfitUnproven
	}
	return n.misfit
}

// EngineBlock returns how many tokens the engine's blocks on the GPU have; 0 before
// any was told.
func (n *Names) EngineBlock() int { return n.engineBlock }

// proves reports whether direct keys are still possible after e, which is of the
// group followed. When they are not, what was believed is taken back, and nothing
// is believed until another process speaks.
func (n *Names) proves(e *Event) bool {
	n.parity.check(e)
	switch {
	case n.misfit != MisfitNone:
		return false
	case n.parity.unequal > 0:
		n.misfit = MisfitKeys
	case n.space.Block > 0 && e.Tier == TierGPU && len(e.Tokens) > 0 && e.BlockSize != n.space.Block:
		n.misfit = MisfitBlock
	default:
		return true
	}
	n.close()
	n.forget()
	n.out = append(n.out, Change{Kind: ChangeClear})
	return false
}
