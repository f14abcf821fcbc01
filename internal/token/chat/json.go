package chat

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
)

// FromJSON returns the value that JSON text stands for, with numbers as Python
// reads them.
func FromJSON(raw []byte) (v any, err error) {
	defer catch(&err)
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	v = decode(d, 0)
	if d.More() {
		fail("JSON goes on behind its end")
	}
	return v, nil
}

func token(d *json.Decoder) json.Token {
	t, err := d.Token()
	if err != nil {
		panic(failure{fmt.Errorf("%w: %w", ErrRefused, err)})
	}
	return t
}

func decode(d *json.Decoder, depth int) any {
	if depth > maxDepth-10 {
		fail("values are nested more than %d deep", depth)
	}
	switch t := token(d).(type) {
	case json.Number:
		return numeral(t)
	case json.Delim:
		if t == '[' {
			l := &List{}
			for d.More() {
				l.items = append(l.items, decode(d, depth+1))
			}
			token(d)
			return l
		}
		o := NewDict()
		for d.More() {
			key, _ := token(d).(string)
			o.Set(key, decode(d, depth+1))
		}
		token(d)
		return o
	default:
		return t
	}
}

func numeral(n json.Number) any {
	if !bytes.ContainsAny([]byte(n), ".eE") {
		i, err := n.Int64()
		if err != nil {
			fail("a number of many digits")
		}
		return i
	}
	x, err := n.Float64()
	if err != nil || math.IsInf(x, 0) {
		fail("a number of many digits")
	}
	return x
}
