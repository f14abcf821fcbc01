package journal

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// Encoder appends primitives to a buffer. The zero value is ready; B is the
// result.
type Encoder struct{ B []byte }

// Uint appends an unsigned integer.
func (e *Encoder) Uint(v uint64) { e.B = binary.AppendUvarint(e.B, v) }

// Int appends a signed integer.
func (e *Encoder) Int(v int64) { e.B = binary.AppendVarint(e.B, v) }

// Fixed appends eight bytes, for hashes, which varints would lengthen.
func (e *Encoder) Fixed(v uint64) { e.B = binary.LittleEndian.AppendUint64(e.B, v) }

// Float appends a float by its bits.
func (e *Encoder) Float(v float64) { e.Fixed(math.Float64bits(v)) }

// Bool appends a truth value.
func (e *Encoder) Bool(v bool) {
	if v {
		e.B = append(e.B, 1)
	} else {
		e.B = append(e.B, 0)
	}
}

// Bytes appends a length and the bytes.
func (e *Encoder) Bytes(v []byte) {
	e.Uint(uint64(len(v)))
	e.B = append(e.B, v...)
}

// Tokens appends a token count.
func (e *Encoder) Tokens(v fleet.Tokens) { e.Int(int64(v)) }

// Duration appends a duration.
func (e *Encoder) Duration(v time.Duration) { e.Int(int64(v)) }

// Decoder takes primitives off a buffer in the order an Encoder put them. The
// first failure sticks: later reads return zero values and Err says what and
// where.
type Decoder struct {
	B   []byte
	at  int
	err error
}

// Err returns the first failure.
func (d *Decoder) Err() error { return d.err }

// Rest returns how many bytes have not been read.
func (d *Decoder) Rest() int { return len(d.B) - d.at }

func (d *Decoder) fail(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: no %s at byte %d of %d", ErrDamaged, what, d.at, len(d.B))
	}
}

// Uint reads an unsigned integer.
func (d *Decoder) Uint() uint64 {
	if d.err != nil {
		return 0
	}
	v, n := binary.Uvarint(d.B[d.at:])
	if n <= 0 {
		d.fail("unsigned integer")
		return 0
	}
	d.at += n
	return v
}

// Int reads a signed integer.
func (d *Decoder) Int() int64 {
	if d.err != nil {
		return 0
	}
	v, n := binary.Varint(d.B[d.at:])
	if n <= 0 {
		d.fail("integer")
		return 0
	}
	d.at += n
	return v
}

// Fixed reads eight bytes.
func (d *Decoder) Fixed() uint64 {
	if d.err != nil || d.Rest() < 8 {
		d.fail("eight bytes")
		return 0
	}
	v := binary.LittleEndian.Uint64(d.B[d.at:])
	d.at += 8
	return v
}

// Float reads a float.
func (d *Decoder) Float() float64 { return math.Float64frombits(d.Fixed()) }

// Bool reads a truth value.
func (d *Decoder) Bool() bool {
	if d.err != nil || d.Rest() < 1 {
		d.fail("truth value")
		return false
	}
	d.at++
	return d.B[d.at-1] != 0
}

// Bytes reads a length and as many bytes; the result aliases the buffer.
func (d *Decoder) Bytes() []byte {
	n := d.Len(1)
	b := d.B[d.at : d.at+n]
	d.at += n
	return b
}

// Len reads a count of things of at least size bytes each, and fails when so
// many cannot follow.
func (d *Decoder) Len(size int) int {
	n := d.Uint()
	if d.err == nil && n > uint64(d.Rest()/size) {
		d.fail(fmt.Sprintf("%d items", n))
	}
	if d.err != nil {
		return 0
	}
	return int(n)
}

// Tokens reads a token count.
func (d *Decoder) Tokens() fleet.Tokens { return fleet.Tokens(d.Int()) }

// Duration reads a duration.
func (d *Decoder) Duration() time.Duration { return time.Duration(d.Int()) }
