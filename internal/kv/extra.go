package kv

// extraText marks a bare string until the whole event is read: engines send
// adapter names, salts and media hashes alike.
const extraText ExtraKind = 255

// extraKeys reads what went into keys beside tokens: a list with one entry per
// block, nil where there is nothing.
func (b *Batch) extraKeys(r *msgReader, e *Event) bool {
	blocks, ok := r.list()
	if !ok {
		return false
	}
	from := len(b.extras)
	for block := range blocks {
		entries, ok := r.list()
		if !ok {
			return false
		}
		for range entries {
			x := Extra{Block: int32(block), Kind: ExtraOther}
			if !extraEntry(r, &x) {
				return false
			}
			b.extras = append(b.extras, x)
		}
	}
	e.Extra = b.extras[from:len(b.extras):len(b.extras)]
	return true
}

// extraEntry reads one entry. Forms nobody knows are kept as ExtraOther: that
// there was something matters more than what.
func extraEntry(r *msgReader, x *Extra) bool {
	start := r.at
	switch k, n := r.head(); k {
	case msgStr:
		x.Kind, x.Value = extraText, r.take(n)
		return true
	case msgBin:
		x.Kind, x.Value = ExtraEmbeds, r.take(n)
		return true
	case msgArray:
		if n == 2 && extraMedia(r, x) {
			return true
		}
	case msgMap:
		if extraNamed(r, n, x) {
			return true
		}
	}
	*x = Extra{Block: x.Block, Kind: ExtraOther}
	r.at = start
	return r.skip()
}

// extraMedia reads the pair of a medium's hash and its place.
func extraMedia(r *msgReader, x *Extra) bool {
	k, n := r.head()
	if k != msgStr {
		return false
	}
	x.Kind, x.Value = ExtraMedia, r.take(n)
	var set bool
	x.Offset, set, _ = r.integer()
	return set
}

// extraNamed reads an entry that says its type: its value is the only text
// beside, its offset the only number.
func extraNamed(r *msgReader, n uint64, x *Extra) bool {
	for range n {
		key, ok := r.text()
		if !ok {
			return false
		}
		switch k, m := r.head(); k {
		case msgStr, msgBin:
			if text := r.take(m); string(key) == "type" {
				x.Kind = extraKind(text)
			} else {
				x.Value = text
			}
		case msgInt:
			x.Offset = int64(m)
		case msgNil, msgBool, msgFloat:
		default:
			return false
		}
	}
	return true
}

func extraKind(name []byte) ExtraKind {
	switch string(name) {
	case "lora":
		return ExtraLoRA
	case "mm":
		return ExtraMedia
	case "cache_salt":
		return ExtraSalt
	case "prompt_embeds":
		return ExtraEmbeds
	case "legacy":
		return extraText
	}
	return ExtraOther
}

// sortExtra tells bare strings apart: the adapter's name is known, a salt is at
// the first block of a chain only, and what is left is a medium without its
// place.
func (e *Event) sortExtra() {
	for i := range e.Extra {
		x := &e.Extra[i]
		switch {
		case x.Kind != extraText:
		case e.LoRA != nil && string(x.Value) == string(e.LoRA):
			x.Kind = ExtraLoRA
		case !e.HasParent && x.Block == 0:
			x.Kind = ExtraSalt
		default:
			x.Kind = ExtraMedia
		}
	}
}
