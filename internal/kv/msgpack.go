package kv

import (
	"encoding/binary"
	"math"
)

// msgReader reads MessagePack in place. Lengths are checked against the bytes
// that are left before anybody believes them: an element takes at least one
// byte, so no header can promise more than the payload's own size.
type msgReader struct {
	b  []byte
	at int
}

// msgKind is what a MessagePack value is.
type msgKind uint8

const (
	msgBad   msgKind = iota // cut short, or no MessagePack
	msgNil                  //
	msgBool                 //
	msgInt                  // the number is its bit pattern, negatives in two's complement
	msgFloat                // the number is the bits of a float64
	msgStr                  // the number is the length; so for the kinds below
	msgBin                  //
	msgExt                  //
	msgArray                //
	msgMap                  // the number counts pairs
)

// head reads a value as far as it has no content of its own: text, arrays and
// maps follow.
func (r *msgReader) head() (msgKind, uint64) {
	if r.at >= len(r.b) {
		return msgBad, 0
	}
	c := r.b[r.at]
	r.at++
	switch {
	case c <= 0x7f:
		return msgInt, uint64(c)
	case c <= 0x8f:
		return r.fits(msgMap, uint64(c&0x0f))
	case c <= 0x9f:
		return r.fits(msgArray, uint64(c&0x0f))
	case c <= 0xbf:
		return r.fits(msgStr, uint64(c&0x1f))
	case c >= 0xe0:
		return msgInt, uint64(int64(int8(c)))
	}
	switch c {
	case 0xc0:
		return msgNil, 0
	case 0xc2, 0xc3:
		return msgBool, uint64(c & 1)
	case 0xc4, 0xc5, 0xc6:
		return r.sized(msgBin, 1<<(c-0xc4))
	case 0xc7, 0xc8, 0xc9:
		return r.sized(msgExt, 1<<(c-0xc7))
	case 0xca:
		k, n := r.number(msgFloat, 4)
		return k, math.Float64bits(float64(math.Float32frombits(uint32(n))))
	case 0xcb:
		return r.number(msgFloat, 8)
	case 0xcc, 0xcd, 0xce, 0xcf:
		return r.number(msgInt, 1<<(c-0xcc))
	case 0xd0, 0xd1, 0xd2, 0xd3:
		width := 1 << (c - 0xd0)
		k, n := r.number(msgInt, width)
		shift := 64 - 8*width
		return k, uint64(int64(n<<shift) >> shift)
	case 0xd4, 0xd5, 0xd6, 0xd7, 0xd8:
		return r.fits(msgExt, 1<<(c-0xd4))
	case 0xd9, 0xda, 0xdb:
		return r.sized(msgStr, 1<<(c-0xd9))
	case 0xdc, 0xdd:
		return r.sized(msgArray, 2<<(c-0xdc))
	case 0xde, 0xdf:
		return r.sized(msgMap, 2<<(c-0xde))
	}
	return msgBad, 0
}

// number reads width bytes, big-endian.
func (r *msgReader) number(k msgKind, width int) (msgKind, uint64) {
	if len(r.b)-r.at < width {
		return msgBad, 0
	}
	b := r.b[r.at:]
	r.at += width
	switch width {
	case 1:
		return k, uint64(b[0])
	case 2:
		return k, uint64(binary.BigEndian.Uint16(b))
	case 4:
		return k, uint64(binary.BigEndian.Uint32(b))
	}
	return k, binary.BigEndian.Uint64(b)
}

// sized reads a length of width bytes.
func (r *msgReader) sized(k msgKind, width int) (msgKind, uint64) {
	got, n := r.number(k, width)
	if got == msgBad {
		return msgBad, 0
	}
	return r.fits(k, n)
}

// fits refuses lengths that the payload cannot hold.
func (r *msgReader) fits(k msgKind, n uint64) (msgKind, uint64) {
	need := n
	switch k {
	case msgExt:
		need++ // its type
	case msgMap:
		need *= 2
	}
	if need > uint64(len(r.b)-r.at) {
		return msgBad, 0
	}
	return k, n
}

// take returns the next n bytes, which fits has found there.
func (r *msgReader) take(n uint64) []byte {
	b := r.b[r.at : r.at+int(n)]
	r.at += int(n)
	return b
}

// skip passes over one value of any depth, without recursion: how many values
// are still to come is all it must know.
func (r *msgReader) skip() bool {
	for left := uint64(1); left > 0; left-- {
		switch k, n := r.head(); k {
		case msgBad:
			return false
		case msgStr, msgBin:
			r.at += int(n)
		case msgExt:
			r.at += int(n) + 1
		case msgArray:
			left += n
		case msgMap:
			left += 2 * n
		}
		if left > uint64(len(r.b)-r.at)+1 {
			return false // fewer bytes than values to come
		}
	}
	return true
}

// text reads a string, or bytes used as one; nil reads as none.
func (r *msgReader) text() ([]byte, bool) {
	switch k, n := r.head(); k {
	case msgNil:
		return nil, true
	case msgStr, msgBin:
		return r.take(n), true
	}
	return nil, false
}

// integer reads an integer; nil reads as 0 and not set.
func (r *msgReader) integer() (n int64, set, ok bool) {
	k, bits := r.head()
	return int64(bits), k == msgInt, k == msgInt || k == msgNil
}

// list reads the head of an array; nil reads as empty.
func (r *msgReader) list() (int, bool) {
	switch k, n := r.head(); k {
	case msgArray:
		return int(n), true
	case msgNil:
		return 0, true
	}
	return 0, false
}

// The writers below append the shortest form, as every encoder in the field
// does.

func appendHead(dst []byte, short, medium byte, limit, n int) []byte {
	switch {
	case n < limit:
		return append(dst, short|byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, medium), uint16(n))
	}
	return binary.BigEndian.AppendUint32(append(dst, medium+1), uint32(n))
}

func appendArray(dst []byte, n int) []byte { return appendHead(dst, 0x90, 0xdc, 16, n) }

func appendMap(dst []byte, n int) []byte { return appendHead(dst, 0x80, 0xde, 16, n) }

func appendStr[T string | []byte](dst []byte, s T) []byte {
	if len(s) >= 32 && len(s) <= math.MaxUint8 {
		dst = append(dst, 0xd9, byte(len(s)))
	} else {
		dst = appendHead(dst, 0xa0, 0xda, 32, len(s))
	}
	return append(dst, s...)
}

func appendBin(dst, b []byte) []byte {
	if len(b) <= math.MaxUint8 {
		dst = append(dst, 0xc4, byte(len(b)))
	} else {
		dst = appendHead(dst, 0, 0xc5, 0, len(b))
	}
	return append(dst, b...)
}

func appendUint(dst []byte, n uint64) []byte {
	switch {
	case n <= 0x7f:
		return append(dst, byte(n))
	case n <= math.MaxUint8:
		return append(dst, 0xcc, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, 0xcd), uint16(n))
	case n <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(dst, 0xce), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(dst, 0xcf), n)
}

func appendInt(dst []byte, n int64) []byte {
	switch {
	case n >= 0:
		return appendUint(dst, uint64(n))
	case n >= -32:
		return append(dst, byte(n))
	case n >= math.MinInt8:
		return append(dst, 0xd0, byte(n))
	case n >= math.MinInt16:
		return binary.BigEndian.AppendUint16(append(dst, 0xd1), uint16(n))
	case n >= math.MinInt32:
		return binary.BigEndian.AppendUint32(append(dst, 0xd2), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(dst, 0xd3), uint64(n))
}

func appendFloat(dst []byte, f float64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, 0xcb), math.Float64bits(f))
}

func appendNil(dst []byte) []byte { return append(dst, 0xc0) }
