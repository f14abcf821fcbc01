package tokens

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"penstock.dev/penstock/internal/kv"
)

// answer is what an engine tells of a prompt.
type answer struct {
	tokens []uint32
	media  []kv.Media // in order of offset
	hashed bool       // the hashes of all media are told, if there are any
	most   int        // tokens that are read
}

// maxMedia bounds the media of one prompt.
const maxMedia = 4096

var errAnswer = errors.New("the answer has no tokens where they belong")

// read reads the answer to any of the questions: an object with the tokens, or
// a list of just one.
func (a *answer) read(b []byte) error {
	c := cursor{b: b}
	list := c.take('[')
	if !c.take('{') {
		return errAnswer
	}
	found, count := false, -1
	var features []byte
	for c.peek() == '"' {
		name, ok := c.str()
		if !ok || !c.take(':') {
			return errAnswer
		}
		switch string(name) {
		case "token_ids", "tokens":
			if found || c.peek() != '[' {
				return errAnswer
			}
			if a.tokens, ok = c.ids(a.tokens[:0], a.most); !ok && len(a.tokens) == a.most {
				return errLong
			}
			found = true
		case "count":
			count, ok = c.number()
		default:
			var value []byte
			if value, ok = c.value(); string(name) == "features" {
				features = value
			}
		}
		if !ok {
			return errAnswer
		}
		if !c.take(',') {
			break
		}
	}
	if !found || !c.take('}') || list && !c.take(']') || c.peek() != 0 {
		return errAnswer
	}
	if count >= 0 && count != len(a.tokens) {
		return fmt.Errorf("%w: %d of %d", errAnswer, len(a.tokens), count)
	}
	return a.readFeatures(features)
}

// number consumes a small number.
func (c *cursor) number() (int, bool) {
	c.space()
	from, n := c.i, 0
	for c.i < len(c.b) && isDigit(c.b[c.i]) && n < 1<<31 {
		n = 10*n + int(c.b[c.i]-'0')
		c.i++
	}
	return n, c.i > from && (c.i == len(c.b) || ends(c.b[c.i]))
}

// readFeatures reads which media stand where.
func (a *answer) readFeatures(raw []byte) error {
	if !given(raw) {
		return nil
	}
	var f struct {
		Hashes map[string][]string `json:"mm_hashes"`
		Places map[string][]struct {
			Offset int `json:"offset"`
			Length int `json:"length"`
		} `json:"mm_placeholders"`
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		return fmt.Errorf("features: %w", err)
	}
	if len(f.Places) == 0 && len(f.Hashes) == 0 {
		return nil
	}
	for modality, places := range f.Places {
		hashes := f.Hashes[modality]
		if len(hashes) != len(places) || len(a.media)+len(places) > maxMedia {
			return fmt.Errorf("features: %d hashes for %d places", len(hashes), len(places))
		}
		for i, p := range places {
			if p.Offset < 0 || p.Length < 0 || p.Offset > len(a.tokens) || p.Length > len(a.tokens)-p.Offset || hashes[i] == "" {
				return errors.New("features: a medium outside the prompt")
			}
			a.media = append(a.media, kv.Media{ID: hashes[i], Offset: p.Offset, Length: p.Length})
		}
	}
	slices.SortFunc(a.media, func(x, y kv.Media) int {
		return cmp.Or(cmp.Compare(x.Offset, y.Offset), cmp.Compare(x.ID, y.ID))
	})
	a.hashed = len(a.media) > 0
	return nil
}
