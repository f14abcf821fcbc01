package journal

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func write(t testing.TB, bodies ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b)
	for _, s := range bodies {
		if err := w.Append([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func readAll(raw []byte) (got []string, err error) {
	r, err := NewReader(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	for {
		body, err := r.Next()
		if errors.Is(err, io.EOF) {
			return got, nil
		}
		if err != nil {
			return got, err
		}
		got = append(got, string(body))
	}
}

func TestRoundTripAndTornTail(t *testing.T) {
	long := string(bytes.Repeat([]byte("x"), 200_000))
	raw := write(t, "one", "", long, "four")
	got, err := readAll(raw)
	if err != nil || len(got) != 4 || got[2] != long {
		t.Fatalf("read %d records, %v", len(got), err)
	}
	for cut := len(magic); cut < len(raw); cut += 1 + cut/7 {
		got, err := readAll(raw[:cut])
		if err != nil || len(got) >= 4 {
			t.Fatalf("cut at %d: %d records, %v; want fewer and no error", cut, len(got), err)
		}
	}
}

func TestDamageIsTold(t *testing.T) {
	raw := write(t, "one", "two")
	raw[len(magic)+2] ^= 1
	if _, err := readAll(raw); !errors.Is(err, ErrDamaged) {
		t.Errorf("flipped bit: %v", err)
	}
	if _, err := readAll([]byte("something else entirely")); !errors.Is(err, ErrDamaged) {
		t.Errorf("no magic: %v", err)
	}
}

func TestCodecRoundTrip(t *testing.T) {
	var e Encoder
	e.Uint(300)
	e.Int(-5)
	e.Fixed(1 << 63)
	e.Float(0.1)
	e.Bool(true)
	e.Bytes([]byte("abc"))
	d := Decoder{B: e.B}
	if d.Uint() != 300 || d.Int() != -5 || d.Fixed() != 1<<63 || d.Float() != 0.1 || !d.Bool() || string(d.Bytes()) != "abc" || d.Rest() != 0 || d.Err() != nil {
		t.Errorf("round trip failed: %v", d.Err())
	}
	if d.Uint(); !errors.Is(d.Err(), ErrDamaged) {
		t.Error("reading past the end did not fail")
	}
}

func FuzzReader(f *testing.F) {
	f.Add(write(f, "one", "two"))
	f.Add([]byte(magic + "\xff\xff\xff\x07"))
	f.Fuzz(func(_ *testing.T, raw []byte) {
		_, _ = readAll(raw)
		d := Decoder{B: raw}
		for d.Err() == nil {
			d.Bytes()
			d.Int()
			d.Fixed()
		}
	})
}
