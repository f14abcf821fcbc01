package enginesim

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestContextDependsOnEveryTokenAndTheirOrder(t *testing.T) {
	of := func(salt string, tokens ...uint32) Context {
		_, c := Chain(nil, NewContext(salt), tokens)
		return c
	}
	seen := map[Context]string{}
	for name, c := range map[string]Context{
		"abc": of("", 1, 2, 3), "ab": of("", 1, 2), "acb": of("", 1, 3, 2), "abcc": of("", 1, 2, 3, 3),
		"zero": of("", 0), "empty": of(""), "salted": of("x", 1, 2, 3), "first differs": of("", 9, 2, 3),
	} {
		if other, ok := seen[c]; ok {
			t.Errorf("%s and %s are the same context", name, other)
		}
		seen[c] = name
	}
	if of("", 1, 2, 3) != of("", 1, 2, 3) {
		t.Error("equal sequences differ")
	}
	if c := of("", 1); c.Draw(1) == c.Draw(2) || c.Draw(1) != c.Draw(1) {
		t.Error("draws do not follow the seed")
	}
}

func TestChainOfPartsEqualsChainOfTheWhole(t *testing.T) {
	tokens := make([]uint32, 100)
	for i := range tokens {
		tokens[i] = uint32(i * i)
	}
	whole, _ := Chain(nil, NewContext(""), tokens)
	parts, c := Chain(nil, NewContext(""), tokens[:48])
	parts, _ = Chain(parts, c, tokens[48:])
	if d := cmp.Diff(whole, parts); d != "" || len(whole) != 6 {
		t.Errorf("%d keys, want 6; difference %s", len(whole), d)
	}
}

func TestAnswerLengths(t *testing.T) {
	const n, mean = 20_000, 200
	sum := 0.0
	c := NewContext("")
	for i := range uint32(n) {
		l := c.Add(i).Length(1, mean)
		if l < 1 {
			t.Fatalf("length %d", l)
		}
		sum += float64(l)
	}
	within(t, "mean length", sum/n, mean, 0.03)
	if c.Length(5, mean) != c.Length(5, mean) {
		t.Error("lengths do not repeat")
	}
}
